//! The real `podpath` binary: what it prints, where, and its exit code.

use std::{
    fs::{self, File},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    process::{Command, Output, Stdio},
};

fn podpath(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_podpath"));
    command.args(arguments).env_remove("COLUMNS").stdin(Stdio::null());
    command
}

/// Exit code, standard output and standard error, as a person would see them.
fn told(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
    let code = output.status.code().expect("ended by itself");
    format!("exit {code}\n--- stdout\n{}--- stderr\n{}", text(&output.stdout), text(&output.stderr))
}

fn run(arguments: &[&str]) -> String {
    told(&podpath(arguments).output().expect("starts"))
}

#[test]
fn help() {
    insta::assert_snapshot!("help", run(&["--help"]));
    insta::assert_snapshot!("help_trace", run(&["trace", "--help"]));
    insta::assert_snapshot!("help_doctor", run(&["doctor", "--help"]));
    insta::assert_snapshot!("help_nodes", run(&["nodes", "--help"]));
}

#[test]
fn the_version_is_printed() {
    assert_eq!(run(&["--version"]), format!("exit 0\n--- stdout\npodpath {}\n--- stderr\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn wrong_usage() {
    let wrong: &[&[&str]] = &[
        &[],
        &["trase"],
        &["trace", "bb2"],
        &["trace", "bb2", "bb1", "-c", "0"],
        &["trace", "bb2", "bb1", "-c", "65536"],
        &["trace", "bb2", "bb1", "-i", "0"],
        &["trace", "bb2", "bb1", "-s", "7"],
        &["trace", "bb2", "bb1", "-o", "xml"],
        &["trace", "bb2", "bb1", "--for", "5m"],
        &["trace", "bb2", "bb1", "--passive", "--for", "2 days"],
        &["trace", "bb2", "bb1", "--passive", "-i", "1"],
        &["trace", "bb2", "bb1", "--tcp", "0"],
        &["trace", "bb2", "bb1", "--udp", "65536"],
        &["trace", "bb2", "bb1", "--tcp", "80", "--udp", "53"],
        &["trace", "bb2", "bb1", "--tcp", "80", "--size", "100"],
        &["trace", "bb2", "bb1", "-4", "-6"],
        &["trace", "bb2", "bb1", "--local", "--lab", "x"],
        &["trace", "bb2", "bb1", "--lab", "x", "--inventory", "y"],
    ];
    let all: String = wrong
        .iter()
        .map(|arguments| {
            let output = podpath(arguments).output().expect("starts");
            assert_eq!(output.status.code(), Some(2), "{arguments:?}");
            assert!(output.stdout.is_empty(), "{arguments:?}");
            format!("$ podpath {}\n{}\n", arguments.join(" "), told(&output))
        })
        .collect();
    insta::assert_snapshot!(all);
}

/// Runs in a folder of its own with these files; the folder's name does not show.
fn in_folder(files: &[(&str, &str)], arguments: &[&str]) -> String {
    let folder = tempfile::tempdir().expect("temporary folder");
    for (name, text) in files {
        fs::write(folder.path().join(name), text).expect("writes");
    }
    let output = podpath(arguments).current_dir(folder.path()).output().expect("starts");
    assert_eq!(output.status.code(), Some(1), "{}", told(&output));
    told(&output)
}

const TRACE: [&str; 5] = ["trace", "bb2", "bb1", "--inventory", "inventory.toml"];
const NODES: &str =
    "context = \"lab test\"\nidentity = \"cluster.yaml\"\n[[node]]\nname = \"node-1\"\ncommand = [\"false\"]\n";
const PODS: &str = r#"kind: List
items:
- kind: Pod
  metadata: {name: bb1, namespace: default}
  spec: {nodeName: node-1}
  status: {phase: Running, podIP: 10.1.0.1}
- kind: Pod
  metadata: {name: bb2, namespace: default}
  spec: {nodeName: node-2}
  status: {phase: Running, podIP: 10.2.0.1}
- kind: Pod
  metadata: {name: web, namespace: shop}
  spec: {nodeName: node-1}
  status: {phase: Running, podIP: 10.1.0.2}
- kind: Pod
  metadata: {name: web, namespace: test}
  spec: {nodeName: node-1}
  status: {phase: Running, podIP: 10.1.0.3}
"#;

#[test]
fn an_inventory_that_cannot_be_used() {
    insta::assert_snapshot!("inventory_missing", in_folder(&[], &TRACE));
    insta::assert_snapshot!("inventory_broken", in_folder(&[("inventory.toml", "[[node]\nname = 1\n")], &TRACE));
    insta::assert_snapshot!("inventory_empty", in_folder(&[("inventory.toml", "")], &TRACE));
}

#[test]
fn an_identity_file_that_cannot_be_used() {
    insta::assert_snapshot!("identity_missing", in_folder(&[("inventory.toml", NODES)], &TRACE));
    let files = [("inventory.toml", NODES), ("cluster.yaml", "items:\n- kind: Pod\n  metadata: [")];
    insta::assert_snapshot!("identity_broken", in_folder(&files, &TRACE));
}

#[test]
fn names_that_mean_nothing_or_too_much() {
    let files = [("inventory.toml", NODES), ("cluster.yaml", PODS)];
    let trace = |source: &str, destination: &str| {
        in_folder(&files, &["trace", source, destination, "--inventory", "inventory.toml"])
    };
    insta::assert_snapshot!("unknown_pod", trace("bb9", "bb1"));
    insta::assert_snapshot!("ambiguous_pod", trace("bb1", "web"));
    insta::assert_snapshot!("source_on_no_node", trace("bb2", "bb1"));
    insta::assert_snapshot!("no_common_family", trace("bb1", "fd00::1"));
}

#[test]
fn a_reader_that_has_gone_is_no_panic() {
    // Opened for reading only: every write fails, as it does when the other end of a pipe is closed.
    let (reader, writer) = std::io::pipe().expect("pipe");
    drop(reader);
    let output = podpath(&["doctor"]).stdout(writer).output().expect("starts");
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_full_disk_is_reported() {
    let full = File::options().write(true).open("/dev/full").expect("Linux has it");
    let output = podpath(&["doctor"]).stdout(full).output().expect("starts");
    assert_eq!(output.status.code(), Some(1));
    insta::assert_snapshot!(String::from_utf8_lossy(&output.stderr), @r"
    podpath: standard output: No space left on device (os error 28)
      nothing more was written
    ");
}

#[test]
fn doctor_says_what_this_machine_can_do() {
    let output = podpath(&["doctor"]).output().expect("starts");
    let text = String::from_utf8_lossy(&output.stdout);
    for name in ["kernel ", "capabilities ", "kernel BTF ", "lockdown ", "enter namespaces ", "conntrack "] {
        assert!(text.lines().any(|line| line.get(9..).is_some_and(|rest| rest.starts_with(name))), "{name} in {text}");
    }
    let fatal = text.contains("FATAL");
    assert_eq!(output.status.code(), Some(i32::from(fatal)), "{text}");
    assert!(!text.contains('\x1b'), "a pipe is plain");
}

/// Runs in a mount namespace of its own after `prepare`, with these files in the folder. Needs root.
fn elsewhere(prepare: &str, inventory: &str, arguments: &str) -> String {
    let folder = tempfile::tempdir().expect("temporary folder");
    fs::write(folder.path().join("inventory.toml"), inventory).expect("writes");
    let script = format!("{prepare} && exec {} {arguments}", env!("CARGO_BIN_EXE_podpath"));
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", &script])
        .current_dir(folder.path())
        .env_remove("COLUMNS")
        .stdin(Stdio::null());
    let output = command.output().expect("unshare is installed");
    assert_eq!(output.status.code(), Some(1), "{}", told(&output));
    told(&output)
}

#[test]
fn a_lab_that_cannot_be_chosen() {
    let labs = |names: &str| {
        format!(
            "mount -t tmpfs none /run && for lab in {names}; do mkdir -p /run/podpath/lab/$lab && touch /run/podpath/lab/$lab/inventory.toml; done"
        )
    };
    insta::assert_snapshot!("no_lab", elsewhere(&labs(""), "", "trace bb2 bb1"));
    insta::assert_snapshot!("several_labs", elsewhere(&labs("one two"), "", "trace bb2 bb1"));
    insta::assert_snapshot!("no_such_lab", elsewhere(&labs("one two"), "", "trace bb2 bb1 --lab three"));
}

#[test]
fn a_kernel_without_btf() {
    let inventory =
        format!("[[node]]\nname = \"node-1\"\ncommand = [\"{}\", \"session\"]\n", env!("CARGO_BIN_EXE_podpath-agent"));
    let covered = "mount -t tmpfs none /sys/kernel/btf";
    insta::assert_snapshot!(
        "no_btf",
        elsewhere(covered, &inventory, "trace 10.0.0.1 10.0.0.2 --inventory inventory.toml")
    );
}

/// Inventory of one node that is reached so.
fn node(command: &[&str]) -> String {
    format!("[[node]]\nname = \"node-1\"\ncommand = {command:?}\n")
}

#[test]
fn a_session_that_does_not_begin() {
    let told = |command: &[&str]| {
        let arguments = ["trace", "10.0.0.1", "10.0.0.2", "--inventory", "inventory.toml"];
        in_folder(&[("inventory.toml", &node(command))], &arguments)
    };
    insta::assert_snapshot!("agent_not_found", told(&["podpath-agnt", "session"]));
    insta::assert_snapshot!(
        "agent_fails",
        told(&["sh", "-c", "echo 'ssh: node-1: no route; giving up' >&2; exit 255"])
    );
    insta::assert_snapshot!("agent_silent", told(&["false"]));
    insta::assert_snapshot!("agent_greets", told(&["echo", "Welcome to node-1"]));
    // As in the pods of `podpath install --no-inject`.
    insta::assert_snapshot!("agent_only_watches", told(&["env", "PODPATH_NO_INJECT=1", "podpath-agent", "session"]));
}

#[test]
fn names_without_an_identity_file() {
    insta::assert_snapshot!("local_name", in_folder(&[], &["trace", "bb2", "10.0.0.2", "--local"]));
    insta::assert_snapshot!("inventory_name", in_folder(&[("inventory.toml", &node(&["false"]))], &TRACE));
}

/// Runs both binaries as a user who may nothing. Needs root, to become that user.
fn as_nobody(name: &str, arguments: &[&str], inventory: &str) -> String {
    const NOBODY: u32 = 65534;
    // Not from the target folder, which nobody else need be able to read.
    let folder = tempfile::tempdir().expect("temporary folder");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("own folder");
    for (name, path) in
        [("podpath", env!("CARGO_BIN_EXE_podpath")), ("podpath-agent", env!("CARGO_BIN_EXE_podpath-agent"))]
    {
        fs::copy(path, folder.path().join(name)).expect("copies");
    }
    fs::write(folder.path().join("inventory.toml"), inventory).expect("writes");
    let mut command = Command::new(folder.path().join(name));
    command.args(arguments).current_dir(folder.path()).env_remove("COLUMNS").stdin(Stdio::null());
    let output = command.uid(NOBODY).gid(NOBODY).output().expect("starts, as root");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let own = folder.path().to_str().expect("UTF-8");
    // What a session says goes to podpath.
    format!("--- stderr\n{}", String::from_utf8_lossy(&output.stderr).replace(own, "[folder]"))
}

#[test]
fn without_root() {
    let trace = ["trace", "10.0.0.1", "10.0.0.2", "--inventory", "inventory.toml"];
    insta::assert_snapshot!("not_root", as_nobody("podpath", &trace, &node(&["podpath-agent", "session"])));
    // What `ip netns exec` says to such a user.
    let netns = [
        "sh",
        "-c",
        "echo 'setting the network namespace \"lab-node1\" failed: Operation not permitted' >&2; exit 255",
    ];
    insta::assert_snapshot!("not_root_netns", as_nobody("podpath", &trace, &node(&netns)));
    insta::assert_snapshot!("not_root_agent", as_nobody("podpath-agent", &["session"], ""));
}
