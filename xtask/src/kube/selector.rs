//! Label and field selectors.

use serde_json::Value;

use super::refusal::Refusal;

/// What a list or a watch asks for.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Selector {
    labels: Vec<Requirement>,
    fields: Vec<(String, bool, String)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Requirement {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Missing(String),
}

impl Selector {
    /// # Errors
    /// What is written is no selector.
    pub(crate) fn parse(labels: &str, fields: &str) -> Result<Selector, Refusal> {
        let labels = split(labels).into_iter().map(requirement).collect::<Result<_, _>>()?;
        let fields = split(fields).into_iter().map(field).collect::<Result<_, _>>()?;
        Ok(Selector { labels, fields })
    }

    /// Whether an object is asked for.
    pub(crate) fn matches(&self, object: &Value) -> bool {
        self.labels.iter().all(|requirement| requirement.holds(&object["metadata"]["labels"]))
            && self.fields.iter().all(|(path, equal, wanted)| {
                let value = path.split('.').fold(object, |value, step| &value[step]);
                let holds = value.as_str().unwrap_or_default() == wanted;
                holds == *equal
            })
    }

    /// The value that a field must have.
    pub(crate) fn field(&self, path: &str) -> Option<&str> {
        let mut wanted = self.fields.iter().filter(|(field, equal, _)| field == path && *equal);
        wanted.next().map(|(_, _, value)| value.as_str())
    }
}

/// A selector's parts. Commas within brackets are no ends.
fn split(text: &str) -> Vec<&str> {
    let mut depth = 0;
    let parts = text.split(|c: char| {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        c == ',' && depth == 0
    });
    parts.map(str::trim).filter(|part| !part.is_empty()).collect()
}

fn requirement(text: &str) -> Result<Requirement, Refusal> {
    let values = |list: &str| -> Vec<String> {
        let list = list.trim().trim_start_matches('(').trim_end_matches(')');
        list.split(',').map(|value| value.trim().to_owned()).collect()
    };
    let owned = |text: &str| text.trim().to_owned();
    Ok(if let Some((key, list)) = text.split_once(" notin ") {
        Requirement::NotIn(owned(key), values(list))
    } else if let Some((key, list)) = text.split_once(" in ") {
        Requirement::In(owned(key), values(list))
    } else if let Some((key, value)) = text.split_once("!=") {
        Requirement::NotIn(owned(key), vec![owned(value)])
    } else if let Some((key, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
        Requirement::In(owned(key), vec![owned(value)])
    } else if let Some(key) = text.strip_prefix('!') {
        Requirement::Missing(owned(key))
    } else if text.contains([' ', '(', ')']) {
        return Err(Refusal::bad_request(format!("unable to parse requirement: {text}")));
    } else {
        Requirement::Exists(owned(text))
    })
}

fn field(text: &str) -> Result<(String, bool, String), Refusal> {
    let (path, equal, value) = if let Some((path, value)) = text.split_once("!=") {
        (path, false, value)
    } else if let Some((path, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
        (path, true, value)
    } else {
        return Err(Refusal::bad_request(format!("invalid field selector: {text}")));
    };
    const KNOWN: &[&str] = &[
        "metadata.name",
        "metadata.namespace",
        "spec.clusterIP",
        "spec.nodeName",
        "spec.type",
        "spec.serviceAccountName",
        "status.phase",
        "status.podIP",
        "involvedObject.name",
        "involvedObject.namespace",
        "involvedObject.kind",
        "involvedObject.uid",
    ];
    if !KNOWN.contains(&path) {
        return Err(Refusal::bad_request(format!("field label not supported: {path}")));
    }
    Ok((path.to_owned(), equal, value.to_owned()))
}

impl Requirement {
    fn holds(&self, labels: &Value) -> bool {
        let value = |key: &String| labels.get(key).and_then(Value::as_str);
        match self {
            Requirement::In(key, values) => value(key).is_some_and(|value| values.iter().any(|each| each == value)),
            Requirement::NotIn(key, values) => !value(key).is_some_and(|value| values.iter().any(|each| each == value)),
            Requirement::Exists(key) => value(key).is_some(),
            Requirement::Missing(key) => value(key).is_none(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn selectors_are_those_of_kubernetes() {
        let pod = json!({
            "metadata": { "name": "bb1", "labels": { "run": "bb1", "tier": "web" } },
            "status": { "podIP": "100.115.37.81", "phase": "Running" },
        });
        for (labels, fields, expected) in [
            ("", "", true),
            ("run=bb1,tier==web", "", true),
            ("run!=bb1", "", false),
            ("run in (bb2, bb1),tier", "", true),
            ("run notin (bb2),!gone", "", true),
            ("!tier", "", false),
            ("gone", "", false),
            ("", "status.podIP=100.115.37.81,status.phase!=Succeeded", true),
            ("", "metadata.name=bb2", false),
        ] {
            assert_eq!(Selector::parse(labels, fields).unwrap().matches(&pod), expected, "{labels} {fields}");
        }
        assert!(Selector::parse("", "spec.color=red").is_err());
        assert!(Selector::parse("a b", "").is_err());
    }
}
