//! `podpath install` and `podpath uninstall`.

use super::{
    args::{InstallArgs, ObjectFormat, UninstallArgs},
    error::Error,
    terminal::{Bar, write_stderr, write_stdout},
};
use crate::cluster::{
    Cluster,
    installation::{self, Removed, Rollout},
    manifests::{self, Variant},
    names,
};

/// The shell's convention for a program ended by Ctrl-C.
const INTERRUPTED: u8 = 130;

/// Applies, waits, and says what is there.
///
/// # Errors
/// The cluster cannot be reached or refuses, or the agents do not come up in time.
pub(super) async fn install(args: &InstallArgs) -> Result<u8, Error> {
    if args.dry_run {
        let objects = manifests::objects(&variant(args, None));
        let text = match args.output.unwrap_or(ObjectFormat::Yaml) {
            ObjectFormat::Yaml => manifests::yaml(&objects),
            ObjectFormat::Json => manifests::json(&objects),
        };
        write_stdout(text.as_bytes()).map_err(Error::Output)?;
        return Ok(0);
    }
    let cluster = args.access.cluster().await?;
    tokio::select! {
        done = bring_in(args, &cluster) => done.map(|()| 0),
        _ = tokio::signal::ctrl_c() => {
            write_stderr(
                "podpath: install: interrupted; what was applied so far stays\n  \
                 go on by podpath install, or take it out by podpath uninstall\n",
            );
            Ok(INTERRUPTED)
        }
    }
}

fn variant(args: &InstallArgs, server_minor: Option<u32>) -> Variant {
    Variant {
        image: args.image.clone(),
        host_pid: args.hostpid,
        privileged: args.privileged,
        no_inject: args.no_inject,
        server_minor,
    }
}

async fn bring_in(args: &InstallArgs, cluster: &Cluster) -> Result<(), Error> {
    let objects = manifests::objects(&variant(args, installation::server_minor(cluster).await?));
    let bar = Bar::start(objects.len(), "applying");
    let mut applied = 0;
    installation::apply(cluster, &objects, |name| {
        applied += 1;
        bar.at(applied, objects.len(), format!("applied {name}"));
    })
    .await?;
    let mut told = Vec::new();
    let nodes = installation::wait_until_ready(cluster, args.timeout, |rollout| {
        let Rollout { ready, wanted, troubles, .. } = rollout;
        bar.at(*ready, *wanted, "agents ready".to_owned());
        // Each once, and while it can still be mended: the image can be loaded while this waits.
        for trouble in troubles.iter().map(ToString::to_string) {
            if !told.contains(&trouble) {
                bar.say(&format!("podpath: waiting: {trouble}\n"));
                told.push(trouble);
            }
        }
    })
    .await?;
    drop(bar);
    write_stdout(installed(&cluster.context, nodes, args.no_inject).as_bytes()).map_err(Error::Output)
}

fn installed(context: &str, nodes: usize, no_inject: bool) -> String {
    let agents = if nodes == 1 { "1 node".to_owned() } else { format!("{nodes} nodes") };
    let next = if no_inject { "podpath trace --passive POD POD" } else { "podpath trace POD POD" };
    format!(
        "podpath {} is installed in context {context}: agents ready on {agents}, idle until a trace\n\
         next: {next}, or podpath nodes to see what can be traced where; others may trace who are bound to the roles {role}\n",
        env!("CARGO_PKG_VERSION"),
        role = names::USER_ROLE,
    )
}

/// Removes all of it, waits until it is gone, and says what that was.
///
/// # Errors
/// The cluster cannot be reached or refuses, or something does not go away in time.
pub(super) async fn uninstall(args: &UninstallArgs) -> Result<u8, Error> {
    let cluster = args.access.cluster().await?;
    let objects = manifests::objects(&Variant::default());
    let bar = Bar::start(0, "removing");
    let removed = tokio::select! {
        removed = installation::remove(&cluster, &objects, args.timeout, |name| bar.at(0, 0, format!("removing {name}"))) => removed?,
        _ = tokio::signal::ctrl_c() => {
            drop(bar);
            write_stderr("podpath: uninstall: interrupted; some of it is still there\n  go on by podpath uninstall\n");
            return Ok(INTERRUPTED);
        }
    };
    drop(bar);
    write_stdout(gone(&cluster.context, &removed).as_bytes()).map_err(Error::Output)?;
    Ok(0)
}

fn gone(context: &str, removed: &Removed) -> String {
    let Removed { gone, foreign, bindings } = removed;
    let mut text = if gone.is_empty() {
        format!("podpath is not installed in context {context}: nothing to remove\n")
    } else {
        format!("removed from context {context}: {}\n", gone.join(" "))
    };
    if !foreign.is_empty() {
        text += &format!("kept, because podpath did not make it: {}\n", foreign.join(" "));
    }
    if !bindings.is_empty() {
        let (role, bindings) = (names::USER_ROLE, bindings.join(" "));
        text += &format!(
            "left, because you made them: bindings of clusterrole/{role}; remove them by: kubectl delete clusterrolebinding {bindings}\n"
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happened_is_said() {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let all = [
            installed("kind-kind", 3, false),
            installed("kind-kind", 1, true),
            gone("kind-kind", &Removed::default()),
            gone(
                "kind-kind",
                &Removed {
                    gone: names(&["daemonset/podpath-agent", "clusterrole/podpath-user", "namespace/podpath"]),
                    foreign: names(&["resourcequota/podpath-agent"]),
                    bindings: names(&["podpath-alice"]),
                },
            ),
        ];
        insta::assert_snapshot!(all.concat());
    }
}
