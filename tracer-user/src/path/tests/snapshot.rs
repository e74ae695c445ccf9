//! One trace as programs get it.

use super::cases::{cross_node, two_nodes};
use crate::{node::facts::RouteKind, path::testing::Walk};

fn json(w: &Walk) -> String {
    serde_json::to_string_pretty(&w.check().exchanges[0]).expect("it is plain data")
}

#[test]
fn cross_node_as_json() {
    let mut w = two_nodes();
    cross_node(&mut w, 1);
    w.answer(RouteKind::Unicast, None);
    insta::assert_snapshot!(json(&w));
}
