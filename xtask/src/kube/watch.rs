//! Watches: what there is, then what becomes of it, a JSON document a line.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{SinkExt, channel::mpsc};
use http_body_util::{BodyExt, StreamBody};
use hyper::{Response, body::Frame, header};
use serde_json::{Value, json};

use super::{
    http::{Asked, Body},
    place::Target,
    refusal::Refusal,
    selector::Selector,
    store::Change,
    world::World,
};

pub(crate) fn answer(world: &Arc<World>, asked: &Asked, target: &Target) -> Result<Response<Body>, Refusal> {
    let selector = Selector::parse(asked.text("labelSelector"), asked.text("fieldSelector"))?;
    let from: u64 = match asked.text("resourceVersion") {
        "" => 0,
        version => {
            version.parse().map_err(|_| Refusal::bad_request(format!("invalid resource version \"{version}\"")))?
        }
    };
    let limit = asked.text("timeoutSeconds").parse().map_or(Duration::from_secs(3600), Duration::from_secs);
    let (sender, receiver) = mpsc::channel(16);
    let (world, target) = (world.clone(), target.clone());
    tokio::spawn(async move {
        let mut open = world.open.subscribe();
        tokio::select! {
            () = tell(&world, &target, &selector, from, sender) => {}
            () = tokio::time::sleep(limit) => {}
            _ = open.wait_for(|open| !*open) => {}
        }
    });
    let mut response = Response::new(BodyExt::boxed(StreamBody::new(receiver)));
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    Ok(response)
}

type Sender = mpsc::Sender<Result<Frame<Bytes>, std::convert::Infallible>>;

async fn say(sender: &mut Sender, event: &str, object: &Value) -> bool {
    let line = format!("{}\n", json!({ "type": event, "object": object }));
    sender.send(Ok(Frame::data(Bytes::from(line)))).await.is_ok()
}

async fn tell(world: &World, target: &Target, selector: &Selector, from: u64, mut sender: Sender) {
    let mut changed = world.changed.subscribe();
    let mut seen = from;
    if from == 0 {
        let (version, objects) = {
            let store = world.store();
            let list = store.list(target.kind, target.namespace());
            let matching = list.filter(|(_, object)| selector.matches(object));
            (store.version(), matching.map(|(_, object)| object.clone()).collect::<Vec<_>>())
        };
        for object in objects {
            if !say(&mut sender, "ADDED", &object).await {
                return;
            }
        }
        seen = version;
    }
    loop {
        let changes: Vec<Change> = world.store().since(seen).to_vec();
        for change in changes {
            seen = change.version;
            if let Some(event) = event(&change, target, selector)
                && !say(&mut sender, event, &change.object).await
            {
                return;
            }
        }
        if changed.changed().await.is_err() {
            return;
        }
    }
}

/// How a watch tells of a change; an object that comes into or goes out of its selector is one that comes or goes.
fn event(change: &Change, target: &Target, selector: &Selector) -> Option<&'static str> {
    let key = &change.key;
    let mine = key.group == target.kind.group && key.plural == target.kind.plural;
    if !mine || target.namespace().is_some_and(|namespace| namespace != key.namespace) {
        return None;
    }
    let before = change.before.as_ref().is_some_and(|before| selector.matches(before));
    let after = !change.deleted && selector.matches(&change.object);
    match (before, after) {
        (false, true) => Some("ADDED"),
        (true, true) => Some("MODIFIED"),
        (true, false) => Some("DELETED"),
        (false, false) => None,
    }
}
