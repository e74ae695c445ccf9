//! The agents' image in a real container runtime: containerd takes it, and agents confined as the DaemonSet confines them
//! trace in a lab. Needs root, `containerd` and `runc`.

#[expect(dead_code, reason = "shared with other tests, which use more of it")]
mod support;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;
use support::Lab;
use xtask::{image, lab::LabNode, workspace_root};

/// What an agent may use between traces: bytes of memory.
const AT_REST: u64 = 10_000_000;

#[test]
fn agents_from_the_image_trace_confined_as_the_manifests_say() {
    let lab = Lab::up("image", "calico-bgp");
    let image = image::build(None).unwrap();
    let runtime = Containerd::start();
    runtime.ctr(&["images", "import", "--snapshotter", "native", image.file.to_str().unwrap()]);
    let listed = runtime.ctr(&["images", "ls"]);
    let line = listed.lines().find(|line| line.starts_with(&image.name)).unwrap_or_else(|| panic!("{listed}"));
    assert!(line.contains(&image.digest), "{} is not {line}", image.digest);

    let container = agent_of_the_manifests();
    let capabilities = capabilities(&container);
    let agents: Vec<Agent> =
        lab.nodes.iter().map(|node| Agent::start(&runtime, &image.name, node, &container, &capabilities)).collect();
    for agent in &agents {
        agent.rests();
    }
    let inventory = lab.inventory.with_file_name("containers.toml");
    fs::write(&inventory, inventory_of(&lab.nodes, &runtime)).unwrap();
    let mut trace = Command::new(xtask::beside("podpath").unwrap());
    trace.args(["trace", "bb2", "bb1", "-c", "3", "-o", "json", "--trace-rules", "--inventory"]).arg(&inventory);
    let output = trace.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    // Whatever a capability too few keeps an agent from reading would be warned of.
    assert!(!said.contains("warning"), "{said}");
    let trace: Value = serde_json::from_slice(&output.stdout).unwrap();
    let told = list(&trace["nodes"]);
    assert!(told.len() > 1 && told.iter().all(|node| node["complete"] == true), "{}", trace["nodes"]);
    let outcomes: Vec<_> = list(&trace["exchanges"]).iter().map(|exchange| &exchange["outcome"]).collect();
    assert_eq!(outcomes, ["delivered"; 3]);
    for agent in &agents {
        agent.rests();
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
    fn start(
        runtime: &'a Containerd,
        image: &str,
        node: &LabNode,
        container: &Value,
        wanted: &BTreeSet<String>,
    ) -> Agent<'a> {
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
        mounts.iter().for_each(|mount| words.extend(["--mount", mount]));
        let dropped = DEFAULT_CAPABILITIES.iter().filter(|capability| !wanted.contains(**capability));
        dropped.for_each(|capability| words.extend(["--cap-drop", *capability]));
        let added = wanted.iter().filter(|capability| !DEFAULT_CAPABILITIES.contains(&capability.as_str()));
        added.for_each(|capability| words.extend(["--cap-add", capability.as_str()]));
        words.extend([image, &name]);
        words.extend(list(&container["command"]).iter().map(|word| word.as_str().unwrap()));
        runtime.ctr(&words);
        let tasks = runtime.ctr(&["tasks", "ls"]);
        let of_ours = tasks.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let id = of_ours.filter(|words| words[0] == name).map(|words| words[1].to_owned()).next().unwrap();
        Agent { runtime, name, process: Path::new("/proc").join(id) }
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
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let bounds = status.lines().find_map(|line| line.strip_prefix("CapBnd:")).unwrap();
    let bounds = u64::from_str_radix(bounds.trim(), 16).unwrap();
    let asked = list(&container["securityContext"]["capabilities"]["add"]).iter();
    let mut names: BTreeSet<String> = asked.map(|name| format!("CAP_{}", name.as_str().unwrap())).collect();
    if bounds & (1 << SYS_RESOURCE) == 0 && names.remove("CAP_SYS_RESOURCE") {
        println!("this machine's root has no CAP_SYS_RESOURCE, so neither have the agents");
    }
    names
}
