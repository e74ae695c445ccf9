//! Users and their kubeconfigs.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{rbac::Person, store, world::World};

/// The file of the user that may do everything.
pub(crate) const ADMIN: &str = "kubernetes-admin";

/// Makes a user known, by a new certificate or a new token; writes a kubeconfig for it.
pub(crate) fn write(world: &World, name: &str, groups: &[String], certificate: bool) -> Result<PathBuf> {
    let person = Person::new(name, groups);
    let plain: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let file = |ending: &str| world.folder.join(format!("{plain}.{ending}"));
    let save = |ending: &str, text: &str| -> Result<PathBuf> {
        let path = file(ending);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    };
    let user = if certificate {
        let client = world.authority.client(name, groups)?;
        let paths = (save("crt", &client.certificate)?, save("key", &client.key)?);
        world.people().certificates.insert(client.der, person);
        json!({ "client-certificate": paths.0, "client-key": paths.1 })
    } else {
        let token = format!("{}.{}", store::uid(), store::uid());
        world.people().tokens.insert(token.clone(), person);
        json!({ "token": token })
    };
    world.people().expired.remove(name);
    let ca = world.folder.join("ca.crt");
    fs::write(&ca, &world.authority.pem).with_context(|| format!("write {}", ca.display()))?;
    let cluster = &world.lab.name;
    let config: Value = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [ {
            "name": cluster,
            "cluster": { "server": format!("https://127.0.0.1:{}", world.port), "certificate-authority": ca },
        } ],
        "users": [ { "name": name, "user": user } ],
        "contexts": [ { "name": cluster, "context": { "cluster": cluster, "user": name } } ],
        "current-context": cluster,
    });
    let text = serde_norway::to_string(&config).context("write down a kubeconfig")?;
    save("kubeconfig", &text)
}
