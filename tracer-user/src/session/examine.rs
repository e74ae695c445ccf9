//! A session that traces nothing: it says what its node can do.

use std::{future::ready, time::Duration};

use tokio::time::timeout;

use super::{
    Connection, Death, Error, Failure, Hello, PROTOCOL, Version,
    link::{Incoming, Outbox},
    node::listen,
    wire::Message,
};
use crate::doctor::Check;

/// What one node said.
#[derive(Debug, Default)]
pub struct Examined {
    /// Who it is; None if it did not get so far.
    pub hello: Option<Hello>,
    /// What it can do; None if it did not say.
    pub checks: Option<Vec<Check>>,
    /// Why it did not say all.
    pub death: Option<Death>,
}

/// Asks a node what it can do, and closes the session, whatever it says.
pub async fn examine(connection: Connection, within: Duration) -> Examined {
    let Connection { name: _, reader, writer, host } = connection;
    let outbox = Outbox::new(0);
    let mut examined = Examined::default();
    let listening = listen(
        Incoming::new(reader),
        &outbox,
        writer,
        || ready(()),
        |message, _, ()| match message {
            Message::Hello(hello) if examined.hello.is_none() => {
                let theirs = examined.hello.insert(hello).protocol;
                ask(theirs, &outbox)
            }
            Message::Checks(checks) if examined.checks.is_none() => {
                examined.checks = Some(checks);
                Ok(())
            }
            other => Err(Error::Unexpected { message: other.name(), when: "in an examination" }),
        },
    );
    let ended = timeout(within, listening).await.unwrap_or_else(|_| Err(Error::Peer(late(within))));
    let remains = host.close().await;
    examined.death = ended.err().map(|cause| Death { cause, remains });
    examined
}

fn ask(theirs: Version, outbox: &Outbox) -> Result<(), Error> {
    if !PROTOCOL.talks_to(theirs) {
        return Err(Error::Version { ours: PROTOCOL, theirs, our_name: "podpath", their_name: "podpath-agent" });
    }
    if theirs.minor < 2 {
        return Err(Error::TooOld { theirs, lacks: "examinations" });
    }
    outbox.send(Message::Examine(PROTOCOL));
    Ok(())
}

fn late(within: Duration) -> Failure {
    Failure::new("examination", format!("not done within {} s", within.as_secs()), "check the load of that node")
}
