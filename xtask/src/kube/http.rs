//! From a request to its answer: who asks, may they, what is wrong today, and on to the verbs.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::{Method, Response, body::Incoming, header};
use serde_json::Value;

use super::{
    control::Request,
    discovery, exec,
    fault::take,
    place::{self, Place, Target},
    rbac::{self, Act, Person},
    refusal::Refusal,
    verbs, watch,
    world::World,
};

pub(crate) type Body = BoxBody<Bytes, Infallible>;

/// A request whose sender is known.
pub(crate) struct Asked {
    pub(crate) person: Person,
    pub(crate) method: Method,
    /// Of the query; of those given several times, the last.
    pub(crate) query: HashMap<String, String>,
    /// Of the query, in order.
    pub(crate) pairs: Vec<(String, String)>,
    pub(crate) content_type: String,
}

impl Asked {
    pub(crate) fn text(&self, name: &str) -> &str {
        self.query.get(name).map_or("", String::as_str)
    }

    pub(crate) fn is(&self, name: &str) -> bool {
        matches!(self.text(name), "true" | "1")
    }

    pub(crate) fn is_dry(&self) -> bool {
        self.text("dryRun") == "All"
    }
}

/// Answers, and takes note.
pub(crate) async fn answer(
    world: Arc<World>,
    certificate: Option<Vec<u8>>,
    request: hyper::Request<Incoming>,
) -> Response<Body> {
    let (method, path) = (request.method().to_string(), request.uri().path().to_owned());
    let query = request.uri().query().unwrap_or_default().to_owned();
    let mut user = String::new();
    let answered = respond(&world, certificate, request, &mut user).await;
    let response = answered.unwrap_or_else(|refusal| {
        let mut response = json(refusal.code, &refusal.status());
        if let Some(seconds) = refusal.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response
    });
    let template = place::template(&path);
    let code = response.status().as_u16();
    world.journal().push(Request { method, template, path, query, user, code });
    response
}

async fn respond(
    world: &Arc<World>,
    certificate: Option<Vec<u8>>,
    request: hyper::Request<Incoming>,
    user: &mut String,
) -> Result<Response<Body>, Refusal> {
    let slow = world.faults().slow;
    if !slow.is_zero() {
        tokio::time::sleep(slow).await;
    }
    let person = authenticate(world, certificate, &request)?;
    user.clone_from(&person.name);
    {
        let mut faults = world.faults();
        let retry_after = faults.too_many.0;
        if take(&mut faults.too_many.1) {
            return Err(Refusal::too_many(retry_after));
        }
        if take(&mut faults.broken) {
            return Err(Refusal::internal("etcdserver: request timed out"));
        }
    }
    let person = impersonate(world, person, &request)?;
    user.clone_from(&person.name);
    let path = request.uri().path().to_owned();
    let place = place::place(&path).ok_or_else(Refusal::nowhere)?;
    let pairs = pairs(request.uri().query().unwrap_or_default());
    let content_type = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let asked = Asked {
        person,
        method: request.method().clone(),
        query: pairs.iter().cloned().collect(),
        pairs,
        content_type: content_type.unwrap_or_default().split(';').next().unwrap_or_default().to_owned(),
    };
    match place {
        Place::Other => discovery::answer(world, &path),
        Place::Review(plural) => {
            let body = body(request).await?;
            Ok(json(201, &verbs::review(world, &asked, plural, body)))
        }
        Place::Objects(target) => {
            let verb = verb(&asked, &target)?;
            if target.subresource == "exec" {
                return exec::answer(world, &asked, &target, verb, request);
            }
            rbac::check(&world.store(), &asked.person, verb, &target)?;
            match verb {
                "watch" => watch::answer(world, &asked, &target),
                "get" if target.subresource == "log" => verbs::log(world, &target),
                _ => {
                    let body = body(request).await?;
                    let (code, object) = verbs::done(world, &asked, &target, verb, body)?;
                    Ok(json(code, &object))
                }
            }
        }
    }
}

fn authenticate(
    world: &World,
    certificate: Option<Vec<u8>>,
    request: &hyper::Request<Incoming>,
) -> Result<Person, Refusal> {
    if world.faults().unauthorized {
        return Err(Refusal::unauthorized());
    }
    let people = world.people();
    let bearer = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let by_token = || people.tokens.get(bearer?.strip_prefix("Bearer ")?);
    let by_certificate = || people.certificates.get(&certificate?);
    let person = by_token().or_else(by_certificate).filter(|person| !people.expired.contains(&person.name));
    person.cloned().ok_or_else(Refusal::unauthorized)
}

/// Whom the headers name, if the sender may speak for them.
fn impersonate(world: &World, person: Person, request: &hyper::Request<Incoming>) -> Result<Person, Refusal> {
    let values = |name: &str| -> Vec<String> {
        let all = request.headers().get_all(name).iter();
        all.filter_map(|value| value.to_str().ok()).map(str::to_owned).collect()
    };
    let (users, groups) = (values("impersonate-user"), values("impersonate-group"));
    let Some(user) = users.first() else { return Ok(person) };
    let wanted = match rbac::service_account(user) {
        Some((namespace, name)) => ("serviceaccounts", namespace, name),
        None => ("users", "", user.as_str()),
    };
    let wanted = std::iter::once(wanted).chain(groups.iter().map(|group| ("groups", "", group.as_str())));
    for (resource, namespace, name) in wanted {
        let act = Act { verb: "impersonate", group: "", resource, namespace, name };
        if !rbac::allows(&world.store(), &person, &act) {
            let cause = rbac::cause(&person, &act);
            return Err(Refusal::new(403, "Forbidden", format!("{resource} \"{name}\" is forbidden: {cause}")));
        }
    }
    Ok(Person::new(user, &groups))
}

fn verb(asked: &Asked, target: &Target) -> Result<&'static str, Refusal> {
    let named = !target.name.is_empty();
    Ok(match asked.method {
        Method::GET | Method::HEAD if !named && asked.is("watch") => "watch",
        Method::GET | Method::HEAD if !named => "list",
        Method::GET | Method::HEAD => "get",
        Method::POST => "create",
        Method::PUT if named => "update",
        Method::PATCH if named => "patch",
        Method::DELETE if named => "delete",
        Method::DELETE => "deletecollection",
        _ => {
            let message = "the server does not allow this method on the requested resource";
            return Err(Refusal::new(405, "MethodNotAllowed", message));
        }
    })
}

/// The request's body, JSON or YAML; null if there is none.
async fn body(request: hyper::Request<Incoming>) -> Result<Value, Refusal> {
    let bytes =
        request.into_body().collect().await.map_err(|_| Refusal::bad_request("the body ended early"))?.to_bytes();
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    if let Ok(value) = serde_json::from_slice(&bytes) {
        return Ok(value);
    }
    serde_norway::from_slice(&bytes)
        .map_err(|error| Refusal::bad_request(format!("the object provided is unrecognized: {error}")))
}

/// An answer of JSON.
pub(crate) fn json(code: u16, value: &Value) -> Response<Body> {
    text(code, "application/json", value.to_string())
}

/// An answer of text.
pub(crate) fn text(code: u16, content_type: &'static str, text: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Full::new(text.into()).boxed());
    *response.status_mut() = hyper::StatusCode::from_u16(code).unwrap_or_default();
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    response
}

fn pairs(query: &str) -> Vec<(String, String)> {
    let parts = query.split('&').filter(|part| !part.is_empty());
    parts
        .map(|part| part.split_once('=').unwrap_or((part, "")))
        .map(|(name, value)| (plain(name), plain(value)))
        .collect()
}

/// Without percent signs and pluses.
fn plain(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match (first, hex.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            (b'+', _) => {
                bytes.push(b' ');
                rest = tail;
            }
            (byte, _) => {
                bytes.push(*byte);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_read_as_it_was_meant() {
        let expected = [("labelSelector", "a=b,c in (d)"), ("stdin", "true"), ("x", "")];
        let expected: Vec<(String, String)> = expected.map(|(name, value)| (name.into(), value.into())).to_vec();
        assert_eq!(pairs("labelSelector=a%3Db%2Cc+in+%28d%29&stdin=true&x"), expected);
        assert_eq!(plain("100%"), "100%");
    }
}
