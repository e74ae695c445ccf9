//! A real cluster, named by `PODPATH_TEST_KUBECONFIG`: what `cluster/` does against an API server of our own, as far as it can be
//! done to a cluster that others use. Without the variable the test is ignored, and counted as such.
//!
//! The kubeconfig's user is an administrator, and the nodes have the agents' image (`cargo xtask image`), or can pull the one that
//! `PODPATH_TEST_IMAGE` names. `PODPATH_TEST_ENDS='NAMESPACE/POD NAMESPACE/POD'` says between which pods to trace; without it two that
//! run are taken, of different nodes if there are any. Namespace `podpath` must not exist: it is made, and removed in the end.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use harness::{outcomes, podpath};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::{Api, Client, Config, api::ListParams, config::KubeConfigOptions, config::Kubeconfig};
use libtest_mimic::{Arguments, Trial};

#[path = "cluster/harness.rs"]
#[expect(dead_code, reason = "shared with the tests against our own server, which use more of it")]
mod harness;
#[expect(dead_code, reason = "shared with other tests, which use more of it")]
mod support;

const KUBECONFIG: &str = "PODPATH_TEST_KUBECONFIG";
/// Until the namespace is gone after its deletion.
const GONE_WITHIN: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let kubeconfig = std::env::var_os(KUBECONFIG).filter(|path| !path.is_empty()).map(PathBuf::from);
    let ignored = kubeconfig.is_none();
    let run = move || {
        // Only asked for by `--ignored`.
        let kubeconfig = kubeconfig.ok_or_else(|| format!("{KUBECONFIG} names no file"))?;
        from_install_to_uninstall(&kubeconfig);
        Ok(())
    };
    let trial = Trial::test("a_real_cluster", run).with_ignored_flag(ignored);
    libtest_mimic::run(&arguments, vec![trial]).exit_code()
}

fn from_install_to_uninstall(kubeconfig: &Path) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let client = runtime.block_on(client(kubeconfig));
    let gone = || runtime.block_on(Api::<Namespace>::all(client.clone()).get_opt("podpath")).unwrap().is_none();
    assert!(gone(), "namespace podpath is there already: this test would remove it");
    let image = std::env::var("PODPATH_TEST_IMAGE").ok();
    let image: Vec<&str> = image.iter().flat_map(|image| ["--image", image]).collect();
    let with_image = |words: &[&'static str]| [words, &image].concat();
    let (a, b) = runtime.block_on(ends(client.clone()));

    // Before anything is installed.
    podpath(kubeconfig, &["trace", &a, &b]).refuses(&["podpath install"]);
    podpath(kubeconfig, &[&with_image(&["trace", "--ephemeral", "-o", "json"])[..], &[&a, &b]].concat()).succeeds();
    let removed = Removed { kubeconfig };
    for _ in ["once", "and again, which changes nothing"] {
        podpath(kubeconfig, &with_image(&["install"])).succeeds();
    }
    let listed = podpath(kubeconfig, &["nodes", "-o", "json"]).trace();
    println!("{}", podpath(kubeconfig, &["nodes", "-o", "wide"]).out);
    assert_eq!(listed["schema"], "podpath.nodes/v1");
    for (source, destination) in [(&a, &b), (&b, &a)] {
        println!("{}", podpath(kubeconfig, &["trace", source, destination]).out);
        let trace = podpath(kubeconfig, &["trace", source, destination, "-o", "json"]).succeeds().trace();
        assert_eq!(outcomes(&trace), ["delivered"; 5]);
        assert_eq!(trace["lost_events"], 0);
        assert!(trace["nodes"].as_array().unwrap().iter().all(|node| node["complete"] == true), "{trace:#}");
    }
    drop(removed);
    let deadline = Instant::now() + GONE_WITHIN;
    while !gone() {
        assert!(Instant::now() < deadline, "namespace podpath is still there");
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// Takes podpath out again, however the test ends.
struct Removed<'a> {
    kubeconfig: &'a Path,
}

impl Drop for Removed<'_> {
    fn drop(&mut self) {
        let said = podpath(self.kubeconfig, &["uninstall"]);
        if !std::thread::panicking() {
            said.succeeds();
        }
    }
}

async fn client(kubeconfig: &Path) -> Client {
    let read = Kubeconfig::read_from(kubeconfig).unwrap();
    let config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await.unwrap();
    Client::try_from(config).unwrap()
}

/// Two pods with networks of their own that run.
async fn ends(client: Client) -> (String, String) {
    if let Ok(ends) = std::env::var("PODPATH_TEST_ENDS") {
        let (a, b) = ends.split_once(' ').expect("PODPATH_TEST_ENDS: two pods");
        return (a.to_owned(), b.to_owned());
    }
    let parameters = ListParams::default().fields("status.phase=Running").limit(500);
    let pods = Api::<Pod>::all(client).list(&parameters).await.unwrap().items;
    let own_network = |pod: &&Pod| {
        let host = pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false);
        !host && pod.metadata.deletion_timestamp.is_none()
    };
    let pods: Vec<&Pod> = pods.iter().filter(own_network).collect();
    let node = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
    let name = |pod: &Pod| {
        let [namespace, name] =
            [&pod.metadata.namespace, &pod.metadata.name].map(|part| part.clone().unwrap_or_default());
        format!("{namespace}/{name}")
    };
    let [first, others @ ..] = &pods[..] else { panic!("no pod with a network of its own runs there") };
    let far = others.iter().find(|pod| node(pod) != node(first)).or(others.first());
    (name(first), name(far.expect("only one pod with a network of its own runs there")))
}
