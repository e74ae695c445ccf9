//! Rules and objects against what kube-proxy's own tests expect of it.

use serde_json::Value;

use super::{add as add_objects, *};

fn lab(profile: &str) -> LabInfo {
    let cluster = Profile::named(profile).unwrap();
    LabInfo::describe("x", profile, &cluster, String::new())
}

fn profile() -> Profile {
    Profile::named("calico-bgp").unwrap()
}

fn services(text: &str) -> Vec<Service> {
    #[derive(Deserialize)]
    struct File {
        services: Vec<Service>,
    }
    toml::from_str::<File>(text).unwrap().services
}

/// One of each kind.
fn all() -> Vec<Service> {
    services(
        r#"
        services = [
            { name = "web", cluster_ip = "100.64.0.10", port = 80, port_name = "http", target_port = 8080, endpoints = ["web", "bb2", "bb3"] },
            { name = "none", cluster_ip = "100.64.0.11", port = 80, node_port = 30081, endpoints = [] },
            { name = "local", cluster_ip = "100.64.0.12", port = 80, node_port = 30082, external_traffic_policy = "Local", endpoints = ["bb2"] },
            { name = "sticky", namespace = "shop", cluster_ip = "100.64.0.13", port = 53, protocol = "UDP", node_port = 30083, session_affinity = "ClientIP", endpoints = ["bb1"] },
        ]"#,
    )
}

fn assert_says(text: &str, line: &str) {
    assert!(text.lines().any(|have| have.trim() == line), "no `{line}` in\n{text}");
}

#[test]
fn chains_are_named_as_kube_proxy_names_them() {
    // From TestOverallIPTablesRules and TestOverallNFTablesRules.
    assert_eq!(hash("ns1/svc1:p80tcp", 16), "XPGD46QRK7WJZT7O");
    assert_eq!(hash("ns1/svc1:p80tcp10.180.0.1:80", 16), "SXIVWICOYRO3J4NJ");
    assert_eq!(hash("ns1/svc1/tcp/p80", 8), "ULMVA6XW");
    assert_eq!(hash("ns1/svc1/tcp/p80__10.180.0.1/80", 8), "5OJB2KTY");
}

#[test]
fn iptables_has_kube_proxys_rules() {
    let (lab, all) = (lab("calico-bgp"), all());
    let Restore { add, remove } = Cluster::new(&lab, &profile(), &all).unwrap().iptables(lab.node("node1").unwrap());
    let svc = format!("KUBE-SVC-{}", hash("default/web:httptcp", 16));
    let sep = format!("KUBE-SEP-{}", hash("default/web:httptcp100.106.133.221:8080", 16));
    let comment = "-m comment --comment";
    for line in [
        format!(
            "-A KUBE-SERVICES {comment} \"default/web:http cluster IP\" -m tcp -p tcp -d 100.64.0.10 --dport 80 -j {svc}"
        ),
        format!(
            "-A {svc} {comment} \"default/web:http cluster IP\" -m tcp -p tcp -d 100.64.0.10 --dport 80 ! -s 100.96.0.0/11 -j KUBE-MARK-MASQ"
        ),
        format!(
            "-A {svc} {comment} \"default/web:http -> 100.106.133.221:8080\" -m statistic --mode random --probability 0.3333333333 -j {sep}"
        ),
        format!("-A {sep} {comment} \"default/web:http\" -s 100.106.133.221 -j KUBE-MARK-MASQ"),
        format!("-A {sep} {comment} \"default/web:http\" -m tcp -p tcp -j DNAT --to-destination 100.106.133.221:8080"),
        format!(
            "-A KUBE-SERVICES {comment} \"default/none has no endpoints\" -m tcp -p tcp -d 100.64.0.11 --dport 80 -j REJECT"
        ),
        format!(
            "-A KUBE-EXTERNAL-SERVICES {comment} \"default/none has no endpoints\" -m addrtype --dst-type LOCAL -m tcp -p tcp --dport 30081 -j REJECT"
        ),
        format!(
            "-A KUBE-EXTERNAL-SERVICES {comment} \"default/local has no local endpoints\" -m addrtype --dst-type LOCAL -m tcp -p tcp --dport 30082 -j DROP"
        ),
        // Calico's jump is the first.
        format!("-I FORWARD 2 {comment} \"kubernetes forwarding rules\" -j KUBE-FORWARD"),
        format!("-I PREROUTING 1 {comment} \"kubernetes service portals\" -j KUBE-SERVICES"),
    ] {
        assert_says(&add, &line);
    }
    let sticky = format!("KUBE-SEP-{}", hash("shop/stickyudp100.115.37.81:53", 16));
    assert!(add.contains(&format!("-m recent --name {sticky} --rcheck --seconds 10800 --reap -j {sticky}")), "{add}");
    assert!(add.contains(&format!("-m recent --name {sticky} --set -m udp -p udp -j DNAT")), "{add}");
    let last = add.lines().rev().find(|line| line.starts_with("-A KUBE-SERVICES")).unwrap();
    assert!(last.contains("NOTE: this must be the last rule in this chain"), "{last}");
    assert_says(&remove, &format!("-X {sep}"));
    // Where the endpoint is, clients keep their address.
    let node2 = Cluster::new(&lab, &profile(), &all).unwrap().iptables(lab.node("node2").unwrap()).add;
    assert!(!node2.contains("has no local endpoints"), "{node2}");
    assert_says(&node2, &format!("-A KUBE-EXT-{0} -j KUBE-SVL-{0}", hash("default/localtcp", 16)));
}

#[test]
fn nftables_has_kube_proxys_table() {
    let (lab, all) = (lab("calico-bgp"), all());
    let text = Cluster::new(&lab, &profile(), &all).unwrap().nftables(lab.node("node1").unwrap());
    let web = format!("{}-default/web/tcp/http", hash("default/web/tcp/http", 8));
    let endpoint = |address: &str| {
        let path = format!("default/web/tcp/http__{address}/8080");
        format!("endpoint-{}-{path}", hash(&path, 8))
    };
    let (one, two, three) = (endpoint("100.115.37.82"), endpoint("100.106.133.221"), endpoint("100.115.37.83"));
    assert_says(&text, &format!("chain service-{web} {{"));
    assert_says(&text, "ip daddr 100.64.0.10 ip saddr != 100.96.0.0/11 jump mark-for-masquerade");
    assert_says(&text, &format!("numgen random mod 3 vmap {{ 0 : goto {two}, 1 : goto {one}, 2 : goto {three} }}"));
    assert_says(&text, "meta l4proto tcp dnat to 100.106.133.221:8080");
    assert!(text.contains(&format!("100.64.0.10 . tcp . 80 : goto service-{web}")), "{text}");
    assert!(text.contains("100.64.0.11 . tcp . 80 comment \"default/none\" : goto reject-chain"), "{text}");
    assert!(text.contains("tcp . 30082 comment \"default/local\" : drop"), "{text}");
    assert!(text.contains("elements = { 172.20.50.50 }"), "{text}");
}

fn balanced() -> Vec<Service> {
    services(
        r#"services = [
            { name = "shop", cluster_ip = "100.64.0.10", port = 80, target_port = 8080, load_balancer_ips = ["198.51.100.10"], external_ips = ["198.51.100.20"], load_balancer_source_ranges = ["203.0.113.0/25"], endpoints = ["bb2"] },
            { name = "local", cluster_ip = "100.64.0.12", port = 80, load_balancer_ips = ["198.51.100.12"], external_traffic_policy = "Local", endpoints = ["bb2"] },
        ]"#,
    )
}

#[test]
fn load_balancers_and_external_addresses_have_kube_proxys_rules() {
    let (lab, all) = (lab("calico-bgp"), balanced());
    let cluster = Cluster::new(&lab, &profile(), &all).unwrap();
    let add = cluster.iptables(lab.node("node1").unwrap()).add;
    let (shop, local) = (hash("default/shoptcp", 16), hash("default/localtcp", 16));
    let comment = |text: &str| format!("-m comment --comment \"{text}\"");
    let to = |address: &str| format!("-m tcp -p tcp -d {address} --dport 80");
    for line in [
        format!("-A KUBE-SERVICES {} {} -j KUBE-EXT-{shop}", comment("default/shop external IP"), to("198.51.100.20")),
        format!(
            "-A KUBE-SERVICES {} {} -j KUBE-FW-{shop}",
            comment("default/shop loadbalancer IP"),
            to("198.51.100.10")
        ),
        format!("-A KUBE-FW-{shop} {} -s 203.0.113.0/25 -j KUBE-EXT-{shop}", comment("default/shop loadbalancer IP")),
        format!(
            "-A KUBE-FW-{shop} {}",
            comment("other traffic to default/shop will be dropped by KUBE-PROXY-FIREWALL")
        ),
        format!(
            "-A KUBE-PROXY-FIREWALL {} {} -j DROP",
            comment(&format!("default/shop traffic not accepted by KUBE-FW-{shop}")),
            to("198.51.100.10")
        ),
        format!(
            "-A KUBE-SERVICES {} {} -j KUBE-EXT-{local}",
            comment("default/local loadbalancer IP"),
            to("198.51.100.12")
        ),
        format!(
            "-A KUBE-EXTERNAL-SERVICES {} {} -j DROP",
            comment("default/local has no local endpoints"),
            to("198.51.100.12")
        ),
    ] {
        assert_says(&add, &line);
    }
    assert!(!add.contains("-A KUBE-NODEPORTS"), "{add}");

    let text = cluster.nftables(lab.node("node1").unwrap());
    let [shop, local] = ["shop", "local"].map(|name| {
        let path = format!("default/{name}/tcp/");
        format!("{}-{path}", hash(&path, 8))
    });
    for element in [
        format!("198.51.100.20 . tcp . 80 : goto external-{shop}"),
        format!("198.51.100.10 . tcp . 80 : goto external-{shop}"),
        format!("198.51.100.10 . tcp . 80 comment \"default/shop\" : goto firewall-{shop}"),
        format!("198.51.100.12 . tcp . 80 : goto external-{local}"),
        "198.51.100.12 . tcp . 80 comment \"default/local\" : drop".to_owned(),
    ] {
        assert!(text.contains(&element), "no `{element}` in\n{text}");
    }
    assert_says(&text, "ip saddr != { 203.0.113.0/25 } drop");

    let mut items = Vec::new();
    add_objects(&mut items, &cluster, &lab);
    assert_eq!(items[0]["spec"]["type"], "LoadBalancer");
    assert_eq!(items[0]["spec"]["externalIPs"][0], "198.51.100.20");
    assert_eq!(items[0]["status"]["loadBalancer"]["ingress"][0]["ip"], "198.51.100.10");
    assert_eq!(items[2]["spec"]["externalTrafficPolicy"], "Local");
}

#[test]
fn objects_say_who_is_behind_a_service() {
    let (lab, all) = (lab("calico-bgp"), all());
    let text = crate::lab::identity::yaml(&Profile::named("calico-bgp").unwrap()).unwrap();
    let mut list: Value = serde_norway::from_str(&text).unwrap();
    let items = list["items"].as_array_mut().unwrap();
    add(items, &Cluster::new(&lab, &profile(), &all).unwrap(), &lab);
    let service =
        |name: &str| items.iter().find(|item| item["kind"] == "Service" && item["metadata"]["name"] == name).unwrap();
    let slice = |name: &str| {
        let of = |item: &&Value| item["metadata"]["labels"]["kubernetes.io/service-name"] == name;
        items.iter().find(of).unwrap()
    };
    assert_eq!(service("web")["spec"]["clusterIP"], "100.64.0.10");
    assert_eq!(service("web")["spec"]["ports"][0]["targetPort"], 8080);
    assert_eq!(service("local")["spec"]["externalTrafficPolicy"], "Local");
    assert_eq!(service("sticky")["spec"]["sessionAffinity"], "ClientIP");
    assert_eq!(service("sticky")["spec"]["type"], "NodePort");
    assert_eq!(slice("web")["endpoints"][0]["addresses"][0], "100.106.133.221");
    assert_eq!(slice("web")["endpoints"][0]["nodeName"], "ip-172-20-58-60.ec2.internal");
    assert_eq!(slice("none")["endpoints"], Value::Null);
    let bb2 = items.iter().find(|item| item["kind"] == "Pod" && item["metadata"]["name"] == "bb2").unwrap();
    assert_eq!(slice("web")["endpoints"][0]["targetRef"]["uid"], bb2["metadata"]["uid"]);
    assert_eq!(bb2["metadata"]["labels"]["service/web"], "");
}

#[test]
fn a_service_with_an_endpoint_that_is_not_there_is_refused() {
    let text = r#"services = [{ name = "web", cluster_ip = "100.64.0.10", port = 80, endpoints = ["bb9"] }]"#;
    let error = Cluster::new(&lab("calico-bgp"), &profile(), &services(text)).unwrap_err().to_string();
    assert!(error.contains("no pod `bb9`"), "{error}");
}

#[test]
fn ports_of_one_service_are_one_object_and_rules_of_their_own() {
    let text = r#"services = [
        { name = "dns", cluster_ip = "100.64.0.10", port = 53, port_name = "dns", protocol = "UDP", target_port = 5353, endpoints = ["bb2"], not_ready = ["bb1"] },
        { name = "dns", cluster_ip = "100.64.0.10", port = 53, port_name = "dns-tcp", target_port = 5353, endpoints = ["bb2"], not_ready = ["bb1"] },
        { name = "dns", cluster_ip = "100.64.0.10", port = 9153, port_name = "metrics", node_port = 30053, endpoints = ["bb2"], not_ready = ["bb1"] },
        { name = "web", cluster_ip = "100.64.0.11", port = 80, endpoints = [], not_ready = ["bb1"] },
    ]"#;
    let (lab, all) = (lab("calico-bgp"), services(text));
    let cluster = Cluster::new(&lab, &profile(), &all).unwrap();
    let (iptables, nftables) =
        (cluster.iptables(lab.node("node1").unwrap()).add, cluster.nftables(lab.node("node1").unwrap()));
    for (name, matched) in [
        ("dns", "-m udp -p udp -d 100.64.0.10 --dport 53"),
        ("dns-tcp", "-m tcp -p tcp -d 100.64.0.10 --dport 53"),
        ("metrics", "-m tcp -p tcp -d 100.64.0.10 --dport 9153"),
    ] {
        assert!(iptables.contains(&format!("\"default/dns:{name} cluster IP\" {matched} -j KUBE-SVC-")), "{iptables}");
    }
    assert_says(&nftables, "meta l4proto udp dnat to 100.106.133.221:5353");
    assert_says(&nftables, "meta l4proto tcp dnat to 100.106.133.221:9153");
    assert!(iptables.contains("\"default/web has no endpoints\""), "who is not ready gets nothing: {iptables}");
    assert!(!iptables.contains("100.115.37.81") && !nftables.contains("100.115.37.81"), "{iptables}\n{nftables}");

    let mut items = Vec::new();
    add_objects(&mut items, &cluster, &lab);
    assert_eq!(items.len(), 4, "a service and a slice each");
    let ports = |item: &Value| item["ports"].as_array().unwrap().clone();
    assert_eq!(
        ports(&items[0]["spec"]).iter().map(|port| port["name"].as_str()).collect::<Vec<_>>(),
        [Some("dns"), Some("dns-tcp"), Some("metrics")]
    );
    assert_eq!(
        (&items[0]["spec"]["type"], &items[0]["spec"]["ports"][2]["nodePort"]),
        (&"NodePort".into(), &30053.into())
    );
    assert_eq!(
        ports(&items[1]).iter().map(|port| port["port"].as_u64()).collect::<Vec<_>>(),
        [Some(5353), Some(5353), Some(9153)]
    );
    let ready = |slice: &Value| -> Vec<(Value, Value)> {
        let endpoints = slice["endpoints"].as_array().unwrap().iter();
        endpoints.map(|e| (e["targetRef"]["name"].clone(), e["conditions"]["ready"].clone())).collect()
    };
    assert_eq!(ready(&items[1]), [("bb2".into(), true.into()), ("bb1".into(), false.into())]);
    assert_eq!(ready(&items[3]), [("bb1".into(), false.into())]);
}

#[test]
fn ports_of_one_service_must_agree() {
    let text = r#"services = [
        { name = "dns", cluster_ip = "100.64.0.10", port = 53, port_name = "a", endpoints = ["bb2"] },
        { name = "dns", cluster_ip = "100.64.0.10", port = 54, port_name = "b", endpoints = ["bb1"] },
    ]"#;
    let error = Cluster::new(&lab("calico-bgp"), &profile(), &services(text)).unwrap_err().to_string();
    assert!(error.contains("the ports of service dns"), "{error}");
}
