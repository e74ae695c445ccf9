//! What the server refuses, in Kubernetes' words: `Status` objects.

use serde_json::{Value, json};

use super::kinds::Kind;

/// A request that is not done.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Refusal {
    pub(crate) code: u16,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
    pub(crate) details: Option<Value>,
    /// Seconds of the header of that name.
    pub(crate) retry_after: Option<u32>,
}

impl Refusal {
    pub(crate) fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Refusal {
        Refusal { code, reason, message: message.into(), details: None, retry_after: None }
    }

    fn about(mut self, kind: &Kind, name: &str) -> Refusal {
        let mut details = json!({ "kind": kind.plural });
        if !name.is_empty() {
            details["name"] = json!(name);
        }
        if !kind.group.is_empty() {
            details["group"] = json!(kind.group);
        }
        self.details = Some(details);
        self
    }

    pub(crate) fn unauthorized() -> Refusal {
        Refusal::new(401, "Unauthorized", "Unauthorized")
    }

    pub(crate) fn not_found(kind: &Kind, name: &str) -> Refusal {
        Refusal::new(404, "NotFound", format!("{} \"{name}\" not found", kind.qualified())).about(kind, name)
    }

    /// No such path.
    pub(crate) fn nowhere() -> Refusal {
        let mut refusal = Refusal::new(404, "NotFound", "the server could not find the requested resource");
        refusal.details = Some(json!({}));
        refusal
    }

    pub(crate) fn exists(kind: &Kind, name: &str) -> Refusal {
        Refusal::new(409, "AlreadyExists", format!("{} \"{name}\" already exists", kind.qualified())).about(kind, name)
    }

    pub(crate) fn conflict(kind: &Kind, name: &str) -> Refusal {
        let cause = "the object has been modified; please apply your changes to the latest version and try again";
        let message = format!("Operation cannot be fulfilled on {} \"{name}\": {cause}", kind.qualified());
        Refusal::new(409, "Conflict", message).about(kind, name)
    }

    /// `field` has a value that cannot be.
    pub(crate) fn invalid(kind: &Kind, name: &str, field: &str, cause: &str) -> Refusal {
        let named = if kind.group.is_empty() { kind.kind.to_owned() } else { format!("{}.{}", kind.kind, kind.group) };
        let mut refusal = Refusal::new(422, "Invalid", format!("{named} \"{name}\" is invalid: {field}: {cause}"));
        let mut details = json!({
            "name": name,
            "kind": kind.kind,
            "causes": [ { "reason": "FieldValueInvalid", "message": cause, "field": field } ],
        });
        if !kind.group.is_empty() {
            details["group"] = json!(kind.group);
        }
        refusal.details = Some(details);
        refusal
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Refusal {
        Refusal::new(400, "BadRequest", message)
    }

    pub(crate) fn internal(message: impl Into<String>) -> Refusal {
        Refusal::new(500, "InternalError", message)
    }

    /// RBAC, or something after it, says no.
    pub(crate) fn forbidden(kind: &Kind, name: &str, cause: &str) -> Refusal {
        let what = kind.qualified();
        let message = match name {
            "" => format!("{what} is forbidden: {cause}"),
            name => format!("{what} \"{name}\" is forbidden: {cause}"),
        };
        Refusal::new(403, "Forbidden", message).about(kind, name)
    }

    pub(crate) fn too_many(retry_after: u32) -> Refusal {
        let mut refusal = Refusal::new(429, "TooManyRequests", "Too many requests, please try again later.".to_owned());
        refusal.details = Some(json!({ "retryAfterSeconds": retry_after }));
        refusal.retry_after = Some(retry_after);
        refusal
    }

    /// The object that says it.
    pub(crate) fn status(&self) -> Value {
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        });
        if let Some(details) = &self.details {
            status["details"] = details.clone();
        }
        status
    }
}
