//! Two nodes on one kernel, with a wire, an Internet and pods, the way the lab and kind have them.

use std::{
    fs::File,
    io::Write,
    os::unix::fs::MetadataExt,
    process::{self, Child, Command},
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use nix::sched::{CloneFlags, setns};
use tracer_user::node::Node;

/// Everything in it is removed when it is dropped, also if the test fails.
pub(crate) struct Lab {
    prefix: String,
    namespaces: Vec<String>,
    processes: Vec<Child>,
}

impl Lab {
    /// wire: bridge with ports to `n1`, `n2`, `inet`. `n1` has pods `p1` (Calico-like, with a second interface to
    /// `inet`), `p2` (bridged), `p3` (no default route), `p4` (held by a process only); `n2` has `q1`, with the same
    /// interface indexes as `p1`.
    pub(crate) fn up() -> Self {
        let mut lab = Self::empty();
        for name in ["wire", "inet", "n1", "n2", "p1", "p2", "p3", "p4", "q1"] {
            lab.add(name);
        }
        lab.ip("wire", "link add br0 type bridge");
        lab.ip("wire", "link set br0 up");
        lab.nic("n1", "ens5", "w1", "172.20.50.50/19");
        lab.nic("n2", "ens5", "w2", "172.20.58.60/19");
        lab.nic("inet", "eth0", "w3", "172.20.32.1/19");
        lab.ip("inet", "address add 8.8.8.8/32 dev lo");
        for node in ["n1", "n2"] {
            lab.ip(node, "route add default via 172.20.32.1");
            lab.sysctl(node, "net.ipv4.ip_forward=1");
        }
        lab.pod("n1", "p1", "cali1", "100.115.37.81");
        lab.pod("n2", "q1", "cali1", "100.106.133.221");
        lab.ip("n1", "route add blackhole 100.115.37.64/26 proto bird");
        lab.ip("n1", "route add 100.106.133.192/26 via 172.20.58.60 dev ens5 proto bird");
        lab.ip("n2", "route add 100.115.37.64/26 via 172.20.50.50 dev ens5 proto bird");
        lab.second_interface();
        lab.bridged_pod();
        lab.pod("n1", "p3", "cali3", "100.115.37.83");
        lab.ip("p3", "route del default");
        lab.pod("n1", "p4", "cali4", "100.115.37.84");
        lab
    }

    /// A lab without anything.
    pub(crate) fn empty() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "these tests make network namespaces: run them as root");
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("pn{}x{}", process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        Self { prefix, namespaces: Vec::new(), processes: Vec::new() }
    }

    /// Feeds `input` to `command` inside a namespace.
    pub(crate) fn feed(&self, name: &str, command: &str, input: &str) {
        let full = self.name(name);
        let mut all = vec!["netns", "exec", &full];
        all.extend(command.split_whitespace());
        let mut child = Command::new("ip").args(&all).stdin(process::Stdio::piped()).spawn().expect("ip netns exec");
        child.stdin.take().expect("stdin").write_all(input.as_bytes()).expect("fed");
        assert!(child.wait().expect("ends").success(), "{command}:\n{input}");
    }

    /// A namespace of its own, with loopback up.
    pub(crate) fn add(&mut self, name: &str) {
        run("ip", &["netns", "add", &self.name(name)]);
        self.namespaces.push(name.into());
        // Else each link's own address appears as a route a second or two later, and counts as a change.
        self.sysctl(name, "net.ipv6.conf.default.accept_dad=0");
        self.ip(name, "link set lo up");
    }

    /// Lets `name` be held by a process instead of a name in /run/netns.
    pub(crate) fn unname(&mut self, name: &str) {
        let full = self.name(name);
        let child = Command::new("ip").args(["netns", "exec", &full, "sleep", "600"]).spawn().expect("ip netns exec");
        let inode = self.inode(name);
        // `ip` has moved into the namespace once its own link says so.
        let link = format!("/proc/{}/ns/net", child.id());
        self.processes.push(child);
        while File::open(&link).unwrap().metadata().unwrap().ino() != u64::from(inode) {
            thread::yield_now();
        }
        self.remove(name);
    }

    /// Takes a name out of /run/netns.
    pub(crate) fn remove(&mut self, name: &str) {
        run("ip", &["netns", "del", &self.name(name)]);
        self.namespaces.retain(|other| other != name);
    }

    fn nic(&self, holder: &str, name: &str, port: &str, address: &str) {
        let other = self.name(holder);
        self.ip("wire", &format!("link add {port} type veth peer name {name} netns {other}"));
        self.ip("wire", &format!("link set {port} master br0 up"));
        self.ip(holder, &format!("link set {name} up"));
        self.ip(holder, &format!("address add {address} dev {name}"));
    }

    /// A pod as Calico makes it; both ends get interface index 14, as chance may have it.
    fn pod(&self, node: &str, pod: &str, host: &str, address: &str) {
        let inside = self.name(pod);
        let index = if host == "cali1" { "index 14" } else { "" };
        self.ip(node, &format!("link add {host} {index} type veth peer name eth0 {index} netns {inside}"));
        self.ip(node, &format!("link set {host} up"));
        self.ip(pod, "link set eth0 up");
        self.ip(pod, &format!("address add {address}/32 dev eth0"));
        self.ip(pod, "route add 169.254.1.1 dev eth0 scope link");
        self.ip(pod, "route add default via 169.254.1.1 dev eth0");
        self.ip(node, &format!("route add {address} dev {host} scope link"));
        self.sysctl(node, &format!("net.ipv4.conf.{host}.proxy_arp=1"));
        self.sysctl(node, &format!("net.ipv4.neigh.{host}.proxy_delay=0"));
    }

    fn second_interface(&self) {
        let inet = self.name("inet");
        self.ip("p1", &format!("link add net1 type veth peer name toP1 netns {inet}"));
        self.ip("p1", "link set net1 up");
        self.ip("p1", "address add 10.77.0.1/24 dev net1");
        self.ip("inet", "link set toP1 up");
    }

    fn bridged_pod(&self) {
        let pod = self.name("p2");
        self.ip("n1", "link add cni0 type bridge");
        self.ip("n1", "address add 10.42.0.1/24 dev cni0");
        self.ip("n1", "link set cni0 up");
        self.ip("n1", &format!("link add veth2 type veth peer name eth0 netns {pod}"));
        self.ip("n1", "link set veth2 master cni0 up");
        self.ip("p2", "link set eth0 up");
        self.ip("p2", "address add 10.42.0.5/24 dev eth0");
        self.ip("p2", "route add default via 10.42.0.1");
    }

    /// Gives `n1` so many more pods.
    pub(crate) fn crowd(&mut self, count: u32) {
        let (node, mut batch) = (self.name("n1"), String::new());
        for index in 0..count {
            let name = format!("c{index}");
            let pod = self.name(&name);
            batch += &format!("netns add {pod}\n");
            batch += &format!("link add ca{index} netns {node} type veth peer name eth0 netns {pod}\n");
            self.namespaces.push(name);
        }
        self.batch(&[], &batch);
        for index in 0..count {
            let commands = format!(
                "link set eth0 up\naddress add 10.60.{}.{}/32 dev eth0\nroute add default dev eth0\n",
                index / 250,
                index % 250 + 1
            );
            self.batch(&["-n", &self.name(&format!("c{index}"))], &commands);
        }
    }

    fn batch(&self, options: &[&str], commands: &str) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(commands.as_bytes()).unwrap();
        let mut all = options.to_vec();
        all.extend(["-batch", file.path().to_str().unwrap()]);
        run("ip", &all);
    }

    /// Full name of a namespace.
    pub(crate) fn name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Runs `ip` on a namespace and returns what it prints.
    pub(crate) fn ip(&self, name: &str, arguments: &str) -> String {
        let full = self.name(name);
        let mut all = vec!["-n", &full];
        all.extend(arguments.split_whitespace());
        run("ip", &all)
    }

    /// What `ip` prints about a route, on one line.
    pub(crate) fn ip_line(&self, name: &str, arguments: &str) -> String {
        self.ip(name, arguments).split_whitespace().collect::<Vec<_>>().join(" ")
    }

    pub(crate) fn exec(&self, name: &str, command: &str) -> String {
        let full = self.name(name);
        let mut all = vec!["netns", "exec", &full];
        all.extend(command.split_whitespace());
        run("ip", &all)
    }

    pub(crate) fn sysctl(&self, name: &str, setting: &str) {
        self.exec(name, &format!("sysctl -qw {setting}"));
    }

    /// Inode of a namespace.
    pub(crate) fn inode(&self, name: &str) -> u32 {
        let file = File::open(format!("/run/netns/{}", self.name(name))).expect("namespace of the lab");
        u32::try_from(file.metadata().unwrap().ino()).unwrap()
    }

    /// Interface index.
    pub(crate) fn ifindex(&self, name: &str, link: &str) -> u32 {
        let line = self.ip(name, &format!("-o link show dev {link}"));
        line.split(':').next().unwrap().trim().parse().unwrap()
    }

    /// Surveys the node `name` as a session inside it does.
    pub(crate) fn survey(&self, name: &str) -> Node {
        self.inside(name, || Node::survey().expect("survey"))
    }

    /// Runs `work` on a thread inside a namespace.
    pub(crate) fn inside<T: Send>(&self, name: &str, work: impl FnOnce() -> T + Send) -> T {
        let file = File::open(format!("/run/netns/{}", self.name(name))).unwrap();
        thread::scope(|scope| {
            let worker = scope.spawn(|| {
                setns(file, CloneFlags::CLONE_NEWNET).expect("setns");
                work()
            });
            worker.join().unwrap()
        })
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for child in &mut self.processes {
            let _ = child.kill();
            let _ = child.wait();
        }
        for name in &self.namespaces {
            let _ = Command::new("ip").args(["netns", "del", &self.name(name)]).status();
        }
    }
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {}: {stderr}", arguments.join(" "));
    String::from_utf8(output.stdout).unwrap()
}
