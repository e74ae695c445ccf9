//! Patches.

use serde_json::Value;

/// RFC 7386: null removes.
pub(crate) fn patch(object: &mut Value, patch: &Value) {
    let Value::Object(fields) = patch else {
        *object = patch.clone();
        return;
    };
    if !object.is_object() {
        *object = Value::Object(serde_json::Map::new());
    }
    for (name, value) in fields {
        if value.is_null() {
            if let Some(object) = object.as_object_mut() {
                object.remove(name);
            }
        } else {
            self::patch(&mut object[name], value);
        }
    }
}

/// Server-side apply by one manager who forces: maps are merged, all else is replaced.
pub(crate) fn apply(object: &mut Value, wanted: &Value) {
    match (object, wanted) {
        (Value::Object(object), Value::Object(wanted)) => {
            for (name, value) in wanted {
                apply(object.entry(name).or_insert(Value::Null), value);
            }
        }
        (object, wanted) => *object = wanted.clone(),
    }
}

/// Takes out what the manager applied before and no longer does.
pub(crate) fn prune(object: &mut Value, before: &Value, wanted: &Value) {
    let (Value::Object(object), Value::Object(before)) = (object, before) else { return };
    for (name, before) in before {
        match wanted.get(name) {
            None => {
                object.remove(name);
            }
            Some(wanted) => {
                if let Some(object) = object.get_mut(name) {
                    prune(object, before, wanted);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_apply_keeps_what_others_set_and_drops_what_it_no_longer_sets() {
        let mut object = json!({ "labels": { "mine": "1", "old": "1", "theirs": "1" }, "list": [1, 2] });
        let (before, wanted) =
            (json!({ "labels": { "mine": "1", "old": "1" } }), json!({ "labels": { "mine": "2" }, "list": [3] }));
        prune(&mut object, &before, &wanted);
        apply(&mut object, &wanted);
        assert_eq!(object, json!({ "labels": { "mine": "2", "theirs": "1" }, "list": [3] }));
    }

    #[test]
    fn null_removes_in_a_merge_patch() {
        let mut object = json!({ "a": { "b": 1, "c": 2 } });
        patch(&mut object, &json!({ "a": { "b": null, "d": 3 } }));
        assert_eq!(object, json!({ "a": { "c": 2, "d": 3 } }));
    }
}
