//! What a path stands for, and what is to be done there.

use super::kinds::Kind;

/// What a request is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// Objects, or one of them.
    Objects(Target),
    /// A question to be answered at once, which nobody keeps: `selfsubjectaccessreviews`.
    Review(&'static str),
    /// Anything else, such as `/version`.
    Other,
}

/// Objects, or one of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) kind: &'static Kind,
    /// "": all, or the kind belongs to the cluster.
    pub(crate) namespace: String,
    /// "": all, or not known yet.
    pub(crate) name: String,
    /// `exec`, `log`, `status`, or "".
    pub(crate) subresource: String,
}

impl Target {
    pub(crate) fn namespace(&self) -> Option<&str> {
        Some(self.namespace.as_str()).filter(|namespace| !namespace.is_empty())
    }

    /// `pods/exec`, as RBAC writes it.
    pub(crate) fn resource(&self) -> String {
        match self.subresource.as_str() {
            "" => self.kind.plural.to_owned(),
            subresource => format!("{}/{subresource}", self.kind.plural),
        }
    }
}

/// The kinds of reviews, with their groups.
pub(crate) const REVIEWS: &[(&str, &str, &str)] = &[
    ("authorization.k8s.io", "selfsubjectaccessreviews", "SelfSubjectAccessReview"),
    ("authentication.k8s.io", "selfsubjectreviews", "SelfSubjectReview"),
];

/// What `path` stands for; `None` where nothing is.
pub(crate) fn place(path: &str) -> Option<Place> {
    let words: Vec<&str> = path.split('/').filter(|word| !word.is_empty()).collect();
    let (group, words) = match words.as_slice() {
        ["api", "v1", words @ ..] => ("", words),
        ["apis", group, "v1", words @ ..] => (*group, words),
        _ => return Some(Place::Other),
    };
    if words.is_empty() {
        return Some(Place::Other);
    }
    if let Some((_, plural, _)) = REVIEWS.iter().find(|(of, plural, _)| *of == group && words == [*plural]) {
        return Some(Place::Review(plural));
    }
    let target = |namespace: &str, words: &[&str]| {
        let (plural, name, subresource) = match words {
            [plural] => (plural, "", ""),
            [plural, name] => (plural, *name, ""),
            [plural, name, subresource] => (plural, *name, *subresource),
            _ => return None,
        };
        let kind = Kind::of(group, plural)?;
        Some(Place::Objects(Target {
            kind,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            subresource: subresource.to_owned(),
        }))
    };
    match words {
        ["namespaces", _, "status" | "finalize"] => target("", words),
        ["namespaces", namespace, words @ ..] if !words.is_empty() => {
            target(namespace, words).filter(|place| matches!(place, Place::Objects(target) if target.kind.namespaced))
        }
        _ => target("", words),
    }
}

/// `path` without names, to count requests by.
pub(crate) fn template(path: &str) -> String {
    match place(path) {
        Some(Place::Objects(target)) => {
            let base = if target.kind.group.is_empty() {
                "/api/v1".to_owned()
            } else {
                format!("/apis/{}/v1", target.kind.group)
            };
            let namespace = if target.namespace.is_empty() { "" } else { "/namespaces/{namespace}" };
            let name = if target.name.is_empty() { "" } else { "/{name}" };
            let slash = if target.subresource.is_empty() { "" } else { "/" };
            format!("{base}{namespace}/{}{name}{slash}{}", target.kind.plural, target.subresource)
        }
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lose_their_names() {
        for (path, expected) in [
            ("/api/v1/namespaces/default/pods/bb1", "/api/v1/namespaces/{namespace}/pods/{name}"),
            ("/api/v1/namespaces/podpath/pods/a/exec", "/api/v1/namespaces/{namespace}/pods/{name}/exec"),
            ("/api/v1/namespaces/podpath", "/api/v1/namespaces/{name}"),
            ("/api/v1/namespaces/podpath/status", "/api/v1/namespaces/{name}/status"),
            ("/api/v1/pods", "/api/v1/pods"),
            ("/apis/apps/v1/namespaces/x/daemonsets", "/apis/apps/v1/namespaces/{namespace}/daemonsets"),
            ("/version", "/version"),
        ] {
            assert_eq!(template(path), expected);
        }
    }

    #[test]
    fn a_path_that_leads_nowhere_is_none() {
        for path in ["/api/v1/cows", "/apis/apps/v1/pods", "/api/v1/namespaces/a/nodes", "/api/v1/pods/a/b/c"] {
            assert_eq!(place(path), None, "{path}");
        }
    }
}
