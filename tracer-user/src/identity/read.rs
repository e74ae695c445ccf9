//! Text -> objects. Two passes: the first finds what kind each item is and bounds the cost (see [`super::limits`]), the
//! second reads the items of the kinds we know, strictly, and skips all others. A single pass cannot: an
//! EndpointSlice's `endpoints` come before its `kind`.

use std::fmt;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::{
    error::{Error, ParseError},
    limits::{Budget, Kinds, Survey},
    objects::{EndpointSliceObject, NodeObject, PodObject, PolicyObject, ServiceObject},
};

/// What a file holds.
#[derive(Debug, Default)]
pub(super) struct Objects {
    pub(super) pods: Vec<PodObject>,
    pub(super) nodes: Vec<NodeObject>,
    pub(super) services: Vec<ServiceObject>,
    pub(super) slices: Vec<EndpointSliceObject>,
    /// Network policies, and whether each is a global one.
    pub(super) policies: Vec<(PolicyObject, bool)>,
    /// Objects of other kinds.
    pub(super) others: usize,
}

/// Reads YAML (one document or several) or JSON (one), told apart by the first character.
pub(super) fn read(text: &str, origin: &str) -> Result<Objects, Error> {
    let failed = |source: ParseError| Error::Parse { origin: origin.to_owned(), source };
    let budget = Budget::of(text);
    let mut objects = Objects::default();
    if text.trim_start_matches('\u{feff}').trim_start().starts_with('{') {
        let text = text.trim_start_matches('\u{feff}');
        json(text, &budget, &mut objects).map_err(|error| failed(error.into()))?;
    } else {
        yaml(text, &budget, &mut objects).map_err(|error| failed(error.into()))?;
    }
    Ok(objects)
}

fn json(text: &str, budget: &Budget, objects: &mut Objects) -> Result<(), serde_json::Error> {
    let mut first = serde_json::Deserializer::from_str(text);
    let kinds = Survey(budget).deserialize(&mut first)?;
    first.end()?;
    Fill { kinds: &kinds, objects }.deserialize(&mut serde_json::Deserializer::from_str(text))
}

fn yaml(text: &str, budget: &Budget, objects: &mut Objects) -> Result<(), serde_norway::Error> {
    let first = serde_norway::Deserializer::from_str(text);
    let second = serde_norway::Deserializer::from_str(text);
    for (survey, fill) in first.zip(second) {
        let kinds = Survey(budget).deserialize(survey)?;
        Fill { kinds: &kinds, objects }.deserialize(fill)?;
    }
    Ok(())
}

/// Puts what one document holds into `objects`.
struct Fill<'a> {
    kinds: &'a Kinds,
    objects: &'a mut Objects,
}

impl Fill<'_> {
    fn object<'de, D: Deserializer<'de>>(&mut self, kind: Option<&str>, from: D) -> Result<(), D::Error> {
        match kind {
            Some("Pod") => self.objects.pods.push(PodObject::deserialize(from)?),
            Some("Node") => self.objects.nodes.push(NodeObject::deserialize(from)?),
            Some("Service") => self.objects.services.push(ServiceObject::deserialize(from)?),
            Some("EndpointSlice") => self.objects.slices.push(EndpointSliceObject::deserialize(from)?),
            Some(kind @ ("NetworkPolicy" | "GlobalNetworkPolicy")) => {
                let global = kind == "GlobalNetworkPolicy";
                self.objects.policies.push((PolicyObject::deserialize(from)?, global));
            }
            Some(_) => {
                IgnoredAny::deserialize(from)?;
                self.objects.others += 1;
            }
            None => {
                IgnoredAny::deserialize(from)?;
            }
        }
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Fill<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(mut self, deserializer: D) -> Result<(), D::Error> {
        let kind = self.kinds.document.as_deref();
        match kind.and_then(|kind| kind.strip_suffix("List")) {
            Some(item) => deserializer.deserialize_map(List { item, fill: self }),
            None => self.object(kind, deserializer),
        }
    }
}

/// A `List`, or a `PodList` and the like, whose items may leave out their kind.
struct List<'a> {
    item: &'a str,
    fill: Fill<'a>,
}

impl<'de> Visitor<'de> for List<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a list of objects")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            if key == "items" {
                map.next_value_seed(Items { item: self.item, fill: &mut self.fill })?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

struct Items<'a, 'b> {
    item: &'a str,
    fill: &'a mut Fill<'b>,
}

impl<'de> DeserializeSeed<'de> for Items<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Items<'_, '_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a sequence of objects")
    }

    /// `items:` without a value.
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let kinds = self.fill.kinds;
        let by_list = (!self.item.is_empty()).then_some(self.item);
        let mut index = 0;
        loop {
            let kind = kinds.items.get(index).and_then(Option::as_deref).or(by_list);
            if seq.next_element_seed(Item { kind, fill: self.fill })?.is_none() {
                return Ok(());
            }
            index += 1;
        }
    }
}

struct Item<'a, 'b> {
    kind: Option<&'a str>,
    fill: &'a mut Fill<'b>,
}

impl<'de> DeserializeSeed<'de> for Item<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        self.fill.object(self.kind, deserializer)
    }
}
