//! What can be tested in a cluster that others use: against an API server of our own, and against a real one that
//! `PODPATH_TEST_KUBECONFIG` names. Without the variable the latter is ignored, and counted as such.
//!
//! The kubeconfig's user is an administrator, and the nodes have the agents' image (`cargo xtask image`), or can pull the one that
//! `PODPATH_TEST_IMAGE` names. `PODPATH_TEST_ENDS='NAMESPACE/POD NAMESPACE/POD'` says between which pods to trace; without it two that
//! run are taken, of different nodes if there are any. Namespace `podpath` must not exist: it is made, and removed in the end.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use harness::{Cluster, outcomes, podpath};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::{Api, Client, Config, api::ListParams, config::KubeConfigOptions, config::Kubeconfig};
use libtest_mimic::{Arguments, Completion, Trial};
use xtask::kube::Options;

#[path = "cluster/harness.rs"]
#[expect(dead_code, reason = "shared with the tests against our own server, which use more of it")]
mod harness;
#[expect(dead_code, reason = "shared with other tests, which use more of it")]
mod support;

const KUBECONFIG: &str = "PODPATH_TEST_KUBECONFIG";
/// Until the namespace is gone after its deletion.
const GONE_WITHIN: Duration = Duration::from_secs(120);

/// A cluster, and what is to be used there.
struct Given {
    kubeconfig: PathBuf,
    /// The agents' image, if not the usual one.
    image: Option<String>,
    /// Two pods, if it matters which.
    ends: Option<String>,
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let real = move || {
        let Some(kubeconfig) = variable(KUBECONFIG) else {
            return Ok(Completion::ignored_with(format!("needs a real cluster: {KUBECONFIG}")));
        };
        let (image, ends) = (variable("PODPATH_TEST_IMAGE"), variable("PODPATH_TEST_ENDS"));
        from_install_to_uninstall(&Given { kubeconfig: kubeconfig.into(), image, ends });
        Ok(Completion::Completed)
    };
    let own = || {
        let cluster = Cluster::up("kube-like-real", "calico-bgp", &Options::default());
        from_install_to_uninstall(&Given { kubeconfig: cluster.server.admin_kubeconfig(), image: None, ends: None });
        Ok(())
    };
    let trials = vec![Trial::test("our_own_server", own), Trial::ignorable_test("a_real_cluster", real)];
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn from_install_to_uninstall(given: &Given) {
    let Given { kubeconfig, image, ends } = given;
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let client = runtime.block_on(client(kubeconfig));
    let gone = || runtime.block_on(Api::<Namespace>::all(client.clone()).get_opt("podpath")).unwrap().is_none();
    assert!(gone(), "namespace podpath is there already: this test would remove it");
    let image: Vec<&str> = image.iter().flat_map(|image| ["--image", image]).collect();
    let with_image = |words: &[&'static str]| [words, &image].concat();
    let (a, b) = match ends {
        Some(ends) => {
            ends.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())).expect("PODPATH_TEST_ENDS: two pods")
        }
        None => runtime.block_on(two_pods(client.clone())),
    };

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
async fn two_pods(client: Client) -> (String, String) {
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
