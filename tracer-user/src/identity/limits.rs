//! What an identity file may cost: reading one takes time and memory in proportion to its size, whatever it holds.

use std::{cell::Cell, fmt};

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

/// The largest identity file that is read, bytes. Some 10 KB per pod is usual, so this is a cluster of about 25,000 pods.
pub const MAX_FILE_BYTES: u64 = 256 << 20;

/// The kinds that one document names.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Kinds {
    /// `kind` of the document itself.
    pub(super) document: Option<String>,
    /// `kind` of each of its `items`, in order.
    pub(super) items: Vec<Option<String>>,
}

/// Counts what a document holds against what its text can hold without YAML aliases.
///
/// Every node of a document takes at least one byte of its text, and escapes grow little (`\L`, two bytes of text, is
/// three bytes of value): three per byte of text is generous. A document that unfolds to more got there by aliases,
/// which kubectl never writes; a few lines of them can unfold to gigabytes.
#[derive(Debug)]
pub(super) struct Budget(Cell<usize>);

impl Budget {
    /// For all documents of this text.
    pub(super) fn of(text: &str) -> Budget {
        Budget(Cell::new(text.len().saturating_mul(3).saturating_add(16)))
    }

    fn spend<E: de::Error>(&self, amount: usize) -> Result<(), E> {
        match self.0.get().checked_sub(amount) {
            Some(rest) => {
                self.0.set(rest);
                Ok(())
            }
            None => Err(E::custom("aliases (*name) make this document unfold to far more than its text")),
        }
    }
}

/// Where in a document the walk is.
#[derive(Clone, Copy)]
enum Place {
    Document,
    Items,
    Item,
    /// The value of a `kind` field of the document or of an item.
    Kind,
    Deeper,
}

/// What was found at a place.
enum Found {
    Kinds(Kinds),
    Items(Vec<Option<String>>),
    Kind(String),
    Nothing,
}

/// Walks a whole document, spending the budget, and notes the kinds.
pub(super) struct Survey<'b>(pub(super) &'b Budget);

impl<'de> DeserializeSeed<'de> for Survey<'_> {
    type Value = Kinds;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Kinds, D::Error> {
        match (Walk { budget: self.0, place: Place::Document }).deserialize(deserializer)? {
            Found::Kinds(kinds) => Ok(kinds),
            Found::Items(_) | Found::Kind(_) | Found::Nothing => Ok(Kinds::default()),
        }
    }
}

#[derive(Clone, Copy)]
struct Walk<'b> {
    budget: &'b Budget,
    place: Place,
}

impl Walk<'_> {
    fn at(self, place: Place) -> Self {
        Walk { place, ..self }
    }
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = Found;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Found, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = Found;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a value as kubectl prints it")
    }

    fn visit_bool<E: de::Error>(self, _: bool) -> Result<Found, E> {
        self.visit_unit()
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<Found, E> {
        self.visit_unit()
    }

    fn visit_i128<E: de::Error>(self, _: i128) -> Result<Found, E> {
        self.visit_unit()
    }

    fn visit_u64<E: de::Error>(self, _: u64) -> Result<Found, E> {
        self.visit_unit()
    }

    fn visit_u128<E: de::Error>(self, _: u128) -> Result<Found, E> {
        self.visit_unit()
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<Found, E> {
        self.visit_unit()
    }

    /// An empty document.
    fn visit_none<E: de::Error>(self) -> Result<Found, E> {
        self.visit_unit()
    }

    fn visit_unit<E: de::Error>(self) -> Result<Found, E> {
        self.budget.spend(1)?;
        Ok(Found::Nothing)
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Found, E> {
        self.budget.spend(1 + value.len())?;
        Ok(if matches!(self.place, Place::Kind) { Found::Kind(value.to_owned()) } else { Found::Nothing })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Found, A::Error> {
        self.budget.spend(1)?;
        let items = matches!(self.place, Place::Items);
        let inner = self.at(if items { Place::Item } else { Place::Deeper });
        let mut kinds = Vec::new();
        while let Some(found) = seq.next_element_seed(inner)? {
            if items {
                kinds.push(if let Found::Kind(kind) = found { Some(kind) } else { None });
            }
        }
        Ok(Found::Items(kinds))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Found, A::Error> {
        self.budget.spend(1)?;
        let mut kinds = Kinds::default();
        while let Some(key) = map.next_key_seed(Key(self.budget))? {
            let place = match (self.place, key) {
                (Place::Document | Place::Item, FieldName::Kind) => Place::Kind,
                (Place::Document, FieldName::Items) => Place::Items,
                _ => Place::Deeper,
            };
            match (place, map.next_value_seed(self.at(place))?) {
                (Place::Kind, Found::Kind(kind)) => kinds.document = Some(kind),
                (Place::Items, Found::Items(items)) => kinds.items = items,
                _ => {}
            }
        }
        Ok(match self.place {
            Place::Document => Found::Kinds(kinds),
            Place::Item => kinds.document.map_or(Found::Nothing, Found::Kind),
            Place::Items | Place::Kind | Place::Deeper => Found::Nothing,
        })
    }
}

/// A field's name, as far as the survey cares.
#[derive(Clone, Copy)]
enum FieldName {
    Kind,
    Items,
    Other,
}

struct Key<'b>(&'b Budget);

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = FieldName;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<FieldName, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = FieldName;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a field's name")
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<FieldName, E> {
        self.0.spend(1 + value.len())?;
        Ok(match value {
            "kind" => FieldName::Kind,
            "items" => FieldName::Items,
            _ => FieldName::Other,
        })
    }
}
