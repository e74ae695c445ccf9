//! Who may do what: from the (Cluster)Roles and their bindings that are stored.

use serde_json::Value;

use super::{
    kinds::Kind,
    place::Target,
    refusal::Refusal,
    store::{Key, Store},
};

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Person {
    pub(crate) name: String,
    /// With `system:authenticated`.
    pub(crate) groups: Vec<String>,
}

const GROUP: &str = "rbac.authorization.k8s.io";

impl Person {
    pub(crate) fn new(name: &str, groups: &[String]) -> Person {
        let mut groups = groups.to_vec();
        if let Some((namespace, _)) = service_account(name) {
            groups.extend(["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")]);
        }
        groups.push("system:authenticated".to_owned());
        groups.dedup();
        Person { name: name.to_owned(), groups }
    }

    fn is(&self, subject: &Value) -> bool {
        let name = subject["name"].as_str().unwrap_or_default();
        match subject["kind"].as_str() {
            Some("User") => self.name == name,
            Some("Group") => self.groups.iter().any(|group| group == name),
            Some("ServiceAccount") => {
                let namespace = subject["namespace"].as_str().unwrap_or_default();
                service_account(&self.name) == Some((namespace, name))
            }
            _ => false,
        }
    }
}

/// Namespace and name of a service account.
pub(crate) fn service_account(user: &str) -> Option<(&str, &str)> {
    user.strip_prefix("system:serviceaccount:")?.split_once(':')
}

/// Something to be done.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Act<'a> {
    pub(crate) verb: &'a str,
    pub(crate) group: &'a str,
    /// With its subresource: `pods/exec`.
    pub(crate) resource: &'a str,
    /// "": of the cluster, or in all namespaces.
    pub(crate) namespace: &'a str,
    /// "": none in particular.
    pub(crate) name: &'a str,
}

/// Whether somebody may do something.
pub(crate) fn allows(store: &Store, person: &Person, act: &Act<'_>) -> bool {
    if person.groups.iter().any(|group| group == "system:masters") {
        return true;
    }
    let bound =
        |binding: &Value| binding["subjects"].as_array().into_iter().flatten().any(|subject| person.is(subject));
    let bindings = |plural: &'static str| Kind::of(GROUP, plural).into_iter();
    let everywhere = bindings("clusterrolebindings").flat_map(|kind| store.list(kind, None));
    let here = (!act.namespace.is_empty()).then_some(act.namespace);
    let here = here
        .into_iter()
        .flat_map(|namespace| bindings("rolebindings").flat_map(move |kind| store.list(kind, Some(namespace))));
    everywhere.chain(here).filter(|(_, binding)| bound(binding)).any(|(key, binding)| {
        let name = binding["roleRef"]["name"].as_str().unwrap_or_default();
        let plural = if binding["roleRef"]["kind"] == "Role" { "roles" } else { "clusterroles" };
        let namespace = if plural == "roles" { key.namespace.clone() } else { String::new() };
        let role = store.get(&Key { group: GROUP, plural, namespace, name: name.to_owned() });
        role.is_some_and(|role| role["rules"].as_array().into_iter().flatten().any(|rule| grants(rule, act)))
    })
}

fn grants(rule: &Value, act: &Act<'_>) -> bool {
    let has = |field: &str, wanted: &[&str]| {
        let list = rule[field].as_array();
        list.into_iter().flatten().filter_map(Value::as_str).any(|each| wanted.contains(&each))
    };
    let subresource = act.resource.split_once('/').map(|(_, subresource)| format!("*/{subresource}"));
    let mut resources = vec!["*", act.resource];
    resources.extend(subresource.as_deref());
    let named = rule["resourceNames"].as_array().is_some_and(|names| !names.is_empty());
    has("verbs", &["*", act.verb])
        && has("apiGroups", &["*", act.group])
        && has("resources", &resources)
        && (!named || has("resourceNames", &[act.name]) && !act.name.is_empty())
}

/// Refuses what somebody may not do.
///
/// # Errors
/// RBAC does not allow it; in Kubernetes' words.
pub(crate) fn check(store: &Store, person: &Person, verb: &str, target: &Target) -> Result<(), Refusal> {
    let resource = target.resource();
    // A namespace lies in itself.
    let namespace = if target.kind.plural == "namespaces" { target.name.as_str() } else { target.namespace.as_str() };
    let act = Act { verb, group: target.kind.group, resource: &resource, namespace, name: &target.name };
    if allows(store, person, &act) {
        return Ok(());
    }
    Err(Refusal::forbidden(target.kind, &target.name, &cause(person, &act)))
}

/// Why it is forbidden.
pub(crate) fn cause(person: &Person, act: &Act<'_>) -> String {
    let scope = match act.namespace {
        "" => "at the cluster scope".to_owned(),
        namespace => format!("in the namespace \"{namespace}\""),
    };
    format!(
        "User \"{}\" cannot {} resource \"{}\" in API group \"{}\" {scope}",
        person.name, act.verb, act.resource, act.group
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kube::place::{Place, place};

    fn target(path: &str) -> Target {
        let Some(Place::Objects(target)) = place(path) else { panic!("{path}") };
        target
    }

    fn put(store: &mut Store, plural: &str, namespace: &str, name: &str, object: Value) {
        store.put(Key::new(Kind::of(GROUP, plural).unwrap(), namespace, name), object);
    }

    #[test]
    fn rights_are_those_of_the_roles_that_are_bound() {
        let mut store = Store::default();
        let rules = json!({ "rules": [
            { "apiGroups": [""], "resources": ["pods", "pods/exec"], "verbs": ["get", "list"] },
            { "apiGroups": ["apps"], "resources": ["*"], "resourceNames": ["web"], "verbs": ["*"] },
        ] });
        put(&mut store, "clusterroles", "", "reader", rules);
        let binding = json!({
            "roleRef": { "kind": "ClusterRole", "name": "reader" },
            "subjects": [ { "kind": "User", "name": "alice" }, { "kind": "ServiceAccount", "name": "bot", "namespace": "ops" } ],
        });
        put(&mut store, "rolebindings", "shop", "readers", binding);
        let alice = Person::new("alice", &[]);
        let refused = |person: &Person, verb: &str, path: &str| {
            check(&store, person, verb, &target(path)).err().map(|refusal| refusal.message)
        };
        assert_eq!(refused(&alice, "list", "/api/v1/namespaces/shop/pods"), None);
        assert_eq!(refused(&alice, "get", "/api/v1/namespaces/shop/pods/a/exec"), None);
        assert_eq!(
            refused(&Person::new("system:serviceaccount:ops:bot", &[]), "get", "/api/v1/namespaces/shop/pods/a"),
            None
        );
        assert_eq!(refused(&alice, "delete", "/apis/apps/v1/namespaces/shop/deployments/web"), None);
        assert_eq!(
            refused(&alice, "list", "/api/v1/namespaces/default/pods").unwrap(),
            "pods is forbidden: User \"alice\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\""
        );
        assert_eq!(
            refused(&alice, "list", "/api/v1/pods").unwrap(),
            "pods is forbidden: User \"alice\" cannot list resource \"pods\" in API group \"\" at the cluster scope"
        );
        assert_eq!(
            refused(&alice, "create", "/api/v1/namespaces/shop/pods/a/exec").unwrap(),
            "pods \"a\" is forbidden: User \"alice\" cannot create resource \"pods/exec\" in API group \"\" in the namespace \"shop\""
        );
        assert_eq!(
            refused(&alice, "delete", "/apis/apps/v1/namespaces/shop/daemonsets/x").unwrap(),
            "daemonsets.apps \"x\" is forbidden: User \"alice\" cannot delete resource \"daemonsets\" in API group \"apps\" in the namespace \"shop\""
        );
        assert_eq!(refused(&Person::new("root", &["system:masters".to_owned()]), "delete", "/api/v1/nodes/a"), None);
    }
}
