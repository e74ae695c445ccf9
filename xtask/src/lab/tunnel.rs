//! Making a node's tunnel device, or saying why there is none.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, PoisonError};

use anyhow::Result;

use super::build::lines;
use super::plan::{Peer, Tunnel, WireGuard};
use super::tool::run;

/// Private WireGuard keys of a lab's nodes, by network namespace: made at their first use, written nowhere.
#[derive(Default)]
pub(crate) struct Keys(Mutex<BTreeMap<String, String>>);

impl Keys {
    fn of(&self, namespace: &str) -> Result<String> {
        let mut keys = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(key) = keys.get(namespace) {
            return Ok(key.clone());
        }
        let key = run("wg", &["genkey"], "")?;
        keys.insert(namespace.to_owned(), key.clone());
        Ok(key)
    }
}

/// Make the device and what depends on it, or say why there is none.
///
/// Where `net.core.fb_tunnels_only_for_init_net` is 0, the kernel has put a fallback device of the name `tunl0` into
/// the namespace, before the NIC or (when the module is loaded by our request) after it. The order of devices decides
/// which address a node's ICMP errors carry, so that one steps aside and ours is always the younger.
pub(crate) fn make(tunnel: &Tunnel, namespace: &str, keys: &Keys) -> Result<Option<String>> {
    let Tunnel { name, what, add, wireguard, ip, bridge } = tunnel;
    step_aside(name)?;
    let add: Vec<&str> = add.split(' ').collect();
    let made = run("ip", &add, "").or_else(|error| match step_aside(name)? {
        true => run("ip", &add, ""),
        false => Err(error),
    });
    if let Err(error) = made {
        // iproute2 knows the kernel's EOPNOTSUPP by this name.
        return match error.to_string().contains("Unknown device type") {
            true => Ok(Some(format!("no {name}: this kernel has no {what} device"))),
            false => Err(error),
        };
    }
    if let Some(wireguard) = wireguard {
        run("wg", &["setconf", name, "/proc/self/fd/0"], &configuration(wireguard, namespace, keys)?)?;
    }
    run("ip", &["-batch", "-"], &lines(ip))?;
    if !bridge.is_empty() {
        run("bridge", &["-batch", "-"], &lines(bridge))?;
    }
    Ok(None)
}

/// Rename the fallback device that has taken `name`; whether there was one.
fn step_aside(name: &str) -> Result<bool> {
    if run("ip", &["link", "show", "dev", name], "").is_err() {
        return Ok(false);
    }
    let batch = format!("link set {name} down\nlink set {name} name {name}-fallback\n");
    run("ip", &["-batch", "-"], &batch)?;
    Ok(true)
}

/// As wg(8) takes it.
fn configuration(wireguard: &WireGuard, namespace: &str, keys: &Keys) -> Result<String> {
    let WireGuard { port, mark, peers } = wireguard;
    let private = keys.of(namespace)?;
    let mut text = format!("[Interface]\nPrivateKey = {}\nListenPort = {port}\nFwMark = {mark:#x}\n", private.trim());
    for Peer { namespace, address, allowed } in peers {
        let public = run("wg", &["pubkey"], &keys.of(namespace)?)?;
        let allowed: Vec<String> = allowed.iter().map(ToString::to_string).collect();
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "\n[Peer]\nPublicKey = {}\nEndpoint = {address}:{port}\nAllowedIPs = {}\n",
            public.trim(),
            allowed.join(", ")
        );
    }
    Ok(text)
}
