//! The objects, their versions, and what became of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use rand::Rng;
use serde_json::{Value, json};

use super::{clock, kinds::Kind};

/// Which object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) group: &'static str,
    pub(crate) plural: &'static str,
    /// "" of what belongs to the cluster.
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl Key {
    pub(crate) fn new(kind: &'static Kind, namespace: &str, name: &str) -> Key {
        let namespace = if kind.namespaced { namespace } else { "" };
        Key { group: kind.group, plural: kind.plural, namespace: namespace.to_owned(), name: name.to_owned() }
    }

    /// Key of a pod.
    pub(crate) fn pod(namespace: &str, name: &str) -> Key {
        Key { group: "", plural: "pods", namespace: namespace.to_owned(), name: name.to_owned() }
    }

    pub(crate) fn is(&self, plural: &str) -> bool {
        self.plural == plural
    }
}

/// A change, as watches tell of it.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub(crate) version: u64,
    pub(crate) key: Key,
    pub(crate) before: Option<Arc<Value>>,
    /// What is there now; of a deleted one, what was there last.
    pub(crate) object: Arc<Value>,
    pub(crate) deleted: bool,
}

/// All objects.
#[derive(Debug, Default)]
pub(crate) struct Store {
    objects: BTreeMap<Key, Arc<Value>>,
    /// What field managers applied last, so that what they leave out next time goes.
    applied: BTreeMap<(Key, String), Value>,
    changes: Vec<Change>,
    version: u64,
}

impl Store {
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    pub(crate) fn get(&self, key: &Key) -> Option<&Arc<Value>> {
        self.objects.get(key)
    }

    /// The objects of a kind, of one namespace or all, by name.
    pub(crate) fn list<'a>(
        &'a self,
        kind: &'static Kind,
        namespace: Option<&'a str>,
    ) -> impl Iterator<Item = (&'a Key, &'a Arc<Value>)> {
        let from = Key::new(kind, namespace.unwrap_or_default(), "");
        self.objects.range(from..).take_while(move |(key, _)| {
            key.group == kind.group
                && key.plural == kind.plural
                && namespace.is_none_or(|namespace| key.namespace == namespace)
        })
    }

    /// Everything in a namespace.
    pub(crate) fn within(&self, namespace: &str) -> Vec<Key> {
        self.objects.keys().filter(|key| key.namespace == namespace).cloned().collect()
    }

    /// Keeps an object, with a new version unless nothing changed. A new one gets all that a server sets.
    pub(crate) fn put(&mut self, key: Key, mut object: Value) -> Arc<Value> {
        let before = self.objects.get(&key).cloned();
        let metadata = &mut object["metadata"];
        metadata["name"] = json!(key.name);
        if !key.namespace.is_empty() {
            metadata["namespace"] = json!(key.namespace);
        }
        match &before {
            Some(before) => {
                for field in ["uid", "creationTimestamp", "resourceVersion", "generation"] {
                    if let Some(value) = before["metadata"].get(field) {
                        metadata[field] = value.clone();
                    }
                }
                if object == **before {
                    return before.clone();
                }
                if object.get("spec") != before.get("spec")
                    && let Some(generation) = before["metadata"]["generation"].as_u64()
                {
                    object["metadata"]["generation"] = json!(generation + 1);
                }
            }
            None => {
                for (field, value) in
                    [("uid", json!(uid())), ("creationTimestamp", json!(clock::now())), ("generation", json!(1))]
                {
                    if metadata.get(field).is_none_or(Value::is_null) {
                        metadata[field] = value;
                    }
                }
            }
        }
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let object = Arc::new(object);
        self.objects.insert(key.clone(), object.clone());
        self.changes.push(Change { version: self.version, key, before, object: object.clone(), deleted: false });
        object
    }

    pub(crate) fn remove(&mut self, key: &Key) -> Option<Arc<Value>> {
        let before = self.objects.remove(key)?;
        self.applied.retain(|(applied, _), _| applied != key);
        self.version += 1;
        let mut object = (*before).clone();
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let object = Arc::new(object);
        let change = Change {
            version: self.version,
            key: key.clone(),
            before: Some(before),
            object: object.clone(),
            deleted: true,
        };
        self.changes.push(change);
        Some(object)
    }

    /// Takes note of what a field manager applies; returns what it applied before.
    pub(crate) fn note_applied(&mut self, key: &Key, manager: &str, object: &Value) -> Option<Value> {
        self.applied.insert((key.clone(), manager.to_owned()), object.clone())
    }

    /// What a field manager applied last.
    pub(crate) fn applied(&self, key: &Key, manager: &str) -> Option<&Value> {
        self.applied.get(&(key.clone(), manager.to_owned()))
    }

    /// What changed after a version.
    pub(crate) fn since(&self, version: u64) -> &[Change] {
        let from = self.changes.partition_point(|change| change.version <= version);
        &self.changes[from..]
    }
}

/// A new UID.
pub(crate) fn uid() -> String {
    let hex: String = (0..16).map(|_| format!("{:02x}", rand::rng().random::<u8>())).collect();
    format!("{}-{}-4{}-8{}-{}", &hex[..8], &hex[8..12], &hex[13..16], &hex[17..20], &hex[20..])
}

/// Five characters as Kubernetes makes them, which form no words.
pub(crate) fn suffix() -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    (0..5).map(|_| char::from(LETTERS[rand::rng().random_range(0..LETTERS.len())])).collect()
}
