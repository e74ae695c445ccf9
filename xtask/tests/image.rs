//! The agents' image in a real container runtime: containerd takes it, and agents confined as the DaemonSet confines them
//! trace in a lab. What each of their capabilities is good for is found out by taking it away. Needs root, `containerd` and
//! `runc`.

#[expect(dead_code, reason = "shared with other tests, which use more of it")]
mod support;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use serde_json::Value;
use support::Lab;
use xtask::{
    image::{self, Image},
    lab::{
        LabNode,
        plant::{Plant, Way},
    },
    workspace_root,
};

/// What an agent may use between traces: bytes of memory.
const AT_REST: u64 = 10_000_000;

#[test]
fn agents_from_the_image_trace_confined_as_the_manifests_say() {
    let _turn = turn();
    let ground = Ground::prepare("image");
    let listed = ground.runtime.ctr(&["images", "ls"]);
    let line = listed.lines().find(|line| line.starts_with(&ground.image.name)).unwrap_or_else(|| panic!("{listed}"));
    assert!(line.contains(&ground.image.digest), "{} is not {line}", ground.image.digest);

    let agents = ground.agents(&capabilities(&ground.container));
    for agent in &agents {
        agent.rests();
    }
    let traced = ground.trace(&["bb2", "bb1", "-c", "3", "--trace-rules"]);
    assert_eq!(traced.outcomes(), ["delivered"; 3], "{}", traced.said);
    // Whatever a capability too few keeps an agent from reading would be warned of.
    assert_eq!(traced.warnings(), [""; 0]);
    let told = list(&traced.json["nodes"]);
    assert!(told.len() > 1 && told.iter().all(|node| node["complete"] == true), "{}", traced.json["nodes"]);
    for agent in &agents {
        agent.rests();
    }
}

/// docs/SECURITY.md has the table of this.
#[test]
fn what_fails_without_each_capability() {
    let _turn = turn();
    let ground = Ground::prepare("image-less");
    let _dropping = Plant::PolicyDrop { pod: "bb1".to_owned(), way: Way::To }.plant(&ground.lab).unwrap();
    let all = capabilities(&ground.container);
    for name in &all {
        let less = all.iter().filter(|other| *other != name).cloned().collect();
        let _agents = ground.agents(&less);
        let dropped = ground.trace(&["bb2", "bb1", "-c", "2", "--timeout", "0.3", "--trace-rules"]);
        let delivered = ground.trace(&["bb1", "8.8.8.8", "-c", "2"]);
        println!("without {name}: {}{:#?}", dropped.said, dropped.json["warnings"]);
        match name.as_str() {
            "CAP_SYS_ADMIN" => {
                dropped.is_refused(&["cannot enter network namespace", name]);
                delivered.is_refused(&["cannot enter network namespace", name]);
            }
            "CAP_NET_RAW" => {
                dropped.is_refused(&["could not send a probe", name]);
                delivered.is_refused(&["could not send a probe", name]);
            }
            "CAP_NET_ADMIN" => {
                assert_eq!(dropped.drop()["why"], "netfilter rule");
                // One per node, however many pods it has.
                let of_rules = dropped.warnings_of(&["cannot read nftables", name]);
                assert_eq!(of_rules, ground.lab.nodes.len(), "{:#?}", dropped.json["warnings"]);
                assert_eq!(delivered.outcomes(), ["delivered"; 2]);
                assert_eq!(delivered.warnings_of(&["cannot look up a conntrack entry", name]), 1);
            }
            "CAP_SYSLOG" if hides_functions() => {
                assert_eq!(dropped.drop()["why"], "ingress policy at default/bb1");
                assert_eq!(dropped.drop()["function"], Value::Null);
                assert_eq!((dropped.warnings_of(&["which functions", name]), dropped.warnings().len()), (1, 1));
                delivered.is_whole();
            }
            // SYS_ADMIN includes the first two (`bpf_capable`, `perfmon_capable`); maps are not counted as locked memory from 5.11.
            "CAP_BPF" | "CAP_PERFMON" | "CAP_SYS_RESOURCE" | "CAP_SYSLOG" => {
                assert_eq!(dropped.drop()["why"], "ingress policy at default/bb1");
                assert_eq!(dropped.drop()["function"], "nft_do_chain");
                assert_eq!(dropped.warnings(), [""; 0]);
                delivered.is_whole();
            }
            other => panic!("what is {other} good for? docs/SECURITY.md should say it too"),
        }
    }
}

/// Overlay `hostpid`, on nodes whose runtime gives pods' namespaces no names: a process leads to each.
#[test]
fn what_fails_without_sys_ptrace_where_pods_have_no_names() {
    let _turn = turn();
    let mut ground = Ground::prepare("image-pid");
    ground.host_pid = true;
    let _processes: Vec<Process> = ground.lab.pods.iter().map(|pod| Process::inside(&pod.namespace)).collect();
    let mut wanted = capabilities(&ground.container);
    {
        let _agents = ground.agents(&wanted);
        ground.trace(&["bb2", "bb1", "-c", "2"]).is_refused(&["no namespace of this node has this address"]);
    }
    wanted.insert("CAP_SYS_PTRACE".to_owned());
    let _agents = ground.agents(&wanted);
    ground.trace(&["bb2", "bb1", "-c", "2"]).is_whole();
}

/// Does the kernel show its functions' addresses only to who has CAP_SYSLOG? (`kallsyms_show_value` in kernel/ksyms_common.c)
fn hides_functions() -> bool {
    let value =
        |name: &str| fs::read_to_string(format!("/proc/sys/kernel/{name}")).unwrap().trim().parse::<i32>().unwrap();
    match value("kptr_restrict") {
        0 => value("perf_event_paranoid") > 1,
        other => other == 1,
    }
}

/// One test after the other: each builds the image, and there may be only two processors.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A lab, and a runtime that has the image.
struct Ground {
    runtime: Containerd,
    lab: Lab,
    image: Image,
    container: Value,
    /// Agents see the host's processes, and no names of namespaces.
    host_pid: bool,
}

impl Ground {
    fn prepare(name: &str) -> Ground {
        let lab = Lab::up(name, "calico-bgp");
        let image = image::build(None).unwrap();
        let runtime = Containerd::start();
        runtime.ctr(&["images", "import", "--snapshotter", "native", image.file.to_str().unwrap()]);
        let inventory = lab.inventory.with_file_name("containers.toml");
        fs::write(&inventory, inventory_of(&lab.nodes, &runtime)).unwrap();
        Ground { runtime, lab, image, container: agent_of_the_manifests(), host_pid: false }
    }

    /// An agent on each node.
    fn agents(&self, capabilities: &BTreeSet<String>) -> Vec<Agent<'_>> {
        self.lab.nodes.iter().map(|node| Agent::start(self, node, capabilities)).collect()
    }

    /// `podpath trace` by sessions in the agents' containers.
    fn trace(&self, words: &[&str]) -> Traced {
        let mut command = Command::new(xtask::beside("podpath").unwrap());
        command.arg("trace").args(words).args(["-o", "json", "--inventory"]);
        let output = command.arg(self.lab.inventory.with_file_name("containers.toml")).output().unwrap();
        Traced {
            code: output.status.code(),
            said: String::from_utf8(output.stderr).unwrap(),
            json: serde_json::from_slice(&output.stdout).unwrap_or_default(),
        }
    }
}

/// What came of a trace.
struct Traced {
    code: Option<i32>,
    /// On standard error; warnings are not among it, but in the JSON.
    said: String,
    /// Null if there is no trace.
    json: Value,
}

impl Traced {
    fn outcomes(&self) -> Vec<&str> {
        list(&self.json["exchanges"]).iter().map(|exchange| exchange["outcome"].as_str().unwrap()).collect()
    }

    fn warnings(&self) -> Vec<&str> {
        list(&self.json["warnings"]).iter().map(|warning| warning.as_str().unwrap()).collect()
    }

    /// How many have all of these words.
    fn warnings_of(&self, words: &[&str]) -> usize {
        self.warnings().iter().filter(|warning| words.iter().all(|word| warning.contains(word))).count()
    }

    /// How the first exchange's request was dropped.
    #[track_caller]
    fn drop(&self) -> &Value {
        assert_eq!(self.outcomes(), ["dropped"; 2], "{}", self.said);
        &list(&self.json["exchanges"][0]["request"]["hops"]).last().unwrap()["detail"]["drop"]
    }

    #[track_caller]
    fn is_whole(&self) {
        assert_eq!(self.code, Some(0), "{}", self.said);
        assert_eq!(self.outcomes(), ["delivered"; 2]);
        assert_eq!(self.warnings(), [""; 0]);
        assert!(list(&self.json["nodes"]).iter().all(|node| node["complete"] == true), "{}", self.json["nodes"]);
    }

    /// There is no trace, and all of this was said.
    #[track_caller]
    fn is_refused(&self, words: &[&str]) {
        assert_eq!(self.code, Some(1), "{}", self.json);
        assert!(words.iter().all(|word| self.said.contains(word)), "no {words:?} in {}", self.said);
    }
}

/// The container that `manifests/` describes.
fn agent_of_the_manifests() -> Value {
    let text = fs::read_to_string(workspace_root().join("manifests/base/daemonset.yaml")).unwrap();
    let object: Value = serde_norway::from_str(&text).unwrap();
    let pod = &object["spec"]["template"]["spec"];
    assert_eq!((pod["hostNetwork"].as_bool(), pod["hostPID"].as_bool()), (Some(true), None));
    assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
    pod["containers"][0].clone()
}

/// Nodes reached by exec in their agents' containers, as the kubelet does it.
fn inventory_of(nodes: &[LabNode], runtime: &Containerd) -> String {
    let mut text = "context = \"containers\"\nidentity = \"identity.yaml\"\n".to_owned();
    for node in nodes {
        let exec = format!(
            "exec ctr --address {} task exec --exec-id session-$$ {} podpath-agent session",
            runtime.address.display(),
            node.namespace
        );
        text.push_str(&format!("[[node]]\nname = {:?}\ncommand = [\"sh\", \"-c\", {exec:?}]\n", node.name));
    }
    text
}

/// A containerd of our own, which goes away with everything in it.
struct Containerd {
    daemon: Child,
    address: PathBuf,
    _folder: tempfile::TempDir,
}

impl Containerd {
    fn start() -> Containerd {
        let folder = tempfile::tempdir().unwrap();
        let within = |name: &str| folder.path().join(name);
        // Not the machine's settings. Images and containers are all that is needed, without Kubernetes' interface to them.
        fs::write(within("config.toml"), "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n").unwrap();
        let log = fs::File::create(within("log")).unwrap();
        let mut command = Command::new("containerd");
        command.arg("--config").arg(within("config.toml")).arg("--root").arg(within("root"));
        command.arg("--state").arg(within("state")).arg("--address").arg(within("socket"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let daemon = command.spawn().expect("containerd runs: `cargo xtask test` installs it");
        let runtime = Containerd { daemon, address: within("socket"), _folder: folder };
        let deadline = Instant::now() + Duration::from_secs(60);
        while !runtime.try_ctr(&["version"]).status.success() {
            assert!(Instant::now() < deadline, "containerd does not answer");
            std::thread::sleep(Duration::from_millis(100));
        }
        runtime
    }

    fn try_ctr(&self, words: &[&str]) -> std::process::Output {
        Command::new("ctr").arg("--address").arg(&self.address).args(words).stdin(Stdio::null()).output().unwrap()
    }

    #[track_caller]
    fn ctr(&self, words: &[&str]) -> String {
        let output = self.try_ctr(words);
        assert!(output.status.success(), "ctr {}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        self.daemon.kill().unwrap();
        self.daemon.wait().unwrap();
    }
}

/// A container that runs what an agent pod runs, in a lab node's network namespace.
struct Agent<'a> {
    runtime: &'a Containerd,
    name: String,
    process: PathBuf,
}

impl<'a> Agent<'a> {
    fn start(ground: &'a Ground, node: &LabNode, wanted: &BTreeSet<String>) -> Agent<'a> {
        let Ground { runtime, image, container, host_pid, .. } = ground;
        let security = &container["securityContext"];
        assert_eq!(security["readOnlyRootFilesystem"], true);
        assert_eq!(security["capabilities"]["drop"], serde_json::json!(["ALL"]));
        let name = node.namespace.clone();
        let network = format!("network:/run/netns/{name}");
        let mut words = vec!["run", "--detach", "--snapshotter", "native", "--read-only", "--seccomp"];
        words.extend(["--with-ns", &network]);
        let mounts: Vec<String> = list(&container["volumeMounts"])
            .iter()
            .map(|mount| {
                let path = mount["mountPath"].as_str().unwrap();
                assert_eq!((&mount["readOnly"], &mount["mountPropagation"]), (&true.into(), &"HostToContainer".into()));
                format!("type=bind,src={path},dst={path},options=rbind:ro:rslave")
            })
            .collect();
        if *host_pid {
            words.extend(["--with-ns", "pid:/proc/self/ns/pid"]);
        } else {
            mounts.iter().for_each(|mount| words.extend(["--mount", mount]));
        }
        let dropped = DEFAULT_CAPABILITIES.iter().filter(|capability| !wanted.contains(**capability));
        dropped.for_each(|capability| words.extend(["--cap-drop", *capability]));
        let added = wanted.iter().filter(|capability| !DEFAULT_CAPABILITIES.contains(&capability.as_str()));
        added.for_each(|capability| words.extend(["--cap-add", capability.as_str()]));
        words.extend([image.name.as_str(), &name]);
        words.extend(list(&container["command"]).iter().map(|word| word.as_str().unwrap()));
        runtime.ctr(&words);
        let tasks = runtime.ctr(&["tasks", "ls"]);
        let of_ours = tasks.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let id = of_ours.filter(|words| words[0] == name).map(|words| words[1].to_owned()).next().unwrap();
        let agent = Agent { runtime, name, process: Path::new("/proc").join(id) };
        // A session in it has the same: exec takes them from the container's specification.
        assert_eq!(set_of(&agent.process, "CapEff:").count_ones() as usize, wanted.len(), "{wanted:?}");
        agent
    }

    /// Small, and holding nothing: no program, map or link of the kernel's, no connection to an API server or anybody.
    #[track_caller]
    fn rests(&self) {
        let status = fs::read_to_string(self.process.join("status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let bytes = line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024;
        println!("{}: {} kB at rest", self.name, bytes / 1024);
        assert!(bytes < AT_REST, "{bytes} bytes");
        let held =
            fs::read_dir(self.process.join("fd")).unwrap().map(|entry| fs::read_link(entry.unwrap().path()).unwrap());
        for held in held {
            let held = held.to_string_lossy();
            assert!(!held.starts_with("anon_inode:bpf") && !held.starts_with("socket:"), "it holds {held}");
        }
    }
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        self.runtime.try_ctr(&["tasks", "delete", "--force", &self.name]);
        self.runtime.try_ctr(&["containers", "rm", &self.name]);
    }
}

/// A process in a network namespace, such as every pod has.
struct Process(Child);

impl Process {
    fn inside(namespace: &str) -> Process {
        Process(Command::new("ip").args(["netns", "exec", namespace, "sleep", "infinity"]).spawn().unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap()
}

/// What containerd gives a container that asks for nothing.
const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// Those of the manifests, but for what root has not got here itself: nobody could pass that on.
fn capabilities(container: &Value) -> BTreeSet<String> {
    // include/uapi/linux/capability.h
    const SYS_RESOURCE: u32 = 24;
    let bounds = set_of(Path::new("/proc/self"), "CapBnd:");
    let asked = list(&container["securityContext"]["capabilities"]["add"]).iter();
    let mut names: BTreeSet<String> = asked.map(|name| format!("CAP_{}", name.as_str().unwrap())).collect();
    if bounds & (1 << SYS_RESOURCE) == 0 && names.remove("CAP_SYS_RESOURCE") {
        println!("this machine's root has no CAP_SYS_RESOURCE, so neither have the agents");
    }
    names
}

/// A set of capabilities in a process's status.
fn set_of(process: &Path, name: &str) -> u64 {
    let status = fs::read_to_string(process.join("status")).unwrap();
    let set = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    u64::from_str_radix(set.trim(), 16).unwrap()
}
