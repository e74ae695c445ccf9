//! What selects pods by their labels: Kubernetes' label selectors, and Calico's selector language
//! (`app == 'web' && has(tier)`), both as one expression.

/// Brackets and `!` within each other, at most: more is nobody's, and would cost stack.
const DEEPEST: u8 = 32;

/// A condition on labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Selector {
    /// The label exists.
    Has(String),
    /// It has this value.
    Is(String, String),
    /// It has one of these.
    In(String, Vec<String>),
    Contains(String, String),
    StartsWith(String, String),
    EndsWith(String, String),
    Not(Box<Selector>),
    /// Of none: always true.
    And(Vec<Selector>),
    /// Of none: never true.
    Or(Vec<Selector>),
}

/// What is known of a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Label<'a> {
    Is(&'a str),
    Absent,
    Unknown,
}

impl Selector {
    /// Calico's language; nothing at all selects everything. None: not understood.
    pub(super) fn parse(text: &str) -> Option<Selector> {
        if text.trim().is_empty() {
            return Some(Selector::all());
        }
        let mut parser = Parser { rest: text, depth: 0 };
        let selector = parser.either()?;
        parser.rest.trim_start().is_empty().then_some(selector)
    }

    /// Everything.
    pub(super) fn all() -> Selector {
        Selector::And(Vec::new())
    }

    pub(super) fn not(self) -> Selector {
        Selector::Not(Box::new(self))
    }

    /// Whether it holds; None: that depends on labels which are not known. A condition on the value of a label that is absent is
    /// false, in both languages.
    pub(super) fn holds<'a>(&self, label: &impl Fn(&str) -> Label<'a>) -> Option<bool> {
        let value = |name: &str, test: &dyn Fn(&str) -> bool| match label(name) {
            Label::Is(value) => Some(test(value)),
            Label::Absent => Some(false),
            Label::Unknown => None,
        };
        match self {
            Selector::Has(name) => value(name, &|_| true),
            Selector::Is(name, wanted) => value(name, &|value| value == wanted),
            Selector::In(name, wanted) => value(name, &|value| wanted.iter().any(|one| one == value)),
            Selector::Contains(name, part) => value(name, &|value| value.contains(part.as_str())),
            Selector::StartsWith(name, part) => value(name, &|value| value.starts_with(part.as_str())),
            Selector::EndsWith(name, part) => value(name, &|value| value.ends_with(part.as_str())),
            Selector::Not(inner) => inner.holds(label).map(|holds| !holds),
            Selector::And(parts) => decided_by(false, parts.iter().map(|part| part.holds(label))),
            Selector::Or(parts) => decided_by(true, parts.iter().map(|part| part.holds(label))),
        }
    }
}

/// One part with this value decides; without one, a part that is not known leaves all open.
pub(super) fn decided_by(value: bool, parts: impl Iterator<Item = Option<bool>>) -> Option<bool> {
    let mut open = false;
    for part in parts {
        match part {
            Some(part) if part == value => return Some(value),
            Some(_) => {}
            None => open = true,
        }
    }
    (!open).then_some(!value)
}

/// Each step takes what it understands from the beginning of `rest`.
struct Parser<'a> {
    rest: &'a str,
    depth: u8,
}

impl<'a> Parser<'a> {
    /// Takes `text`, if that comes next.
    fn take(&mut self, text: &str) -> bool {
        match self.rest.trim_start().strip_prefix(text) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    /// Takes a label's name, or a word of the language.
    fn word(&mut self) -> Option<&'a str> {
        let text = self.rest.trim_start();
        let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '/' | '-');
        let (word, rest) = text.split_at(text.find(|c| !is_part(c)).unwrap_or(text.len()));
        self.rest = rest;
        (!word.is_empty()).then_some(word)
    }

    /// Takes a value in quotes, of which there are two kinds and no escapes.
    fn value(&mut self) -> Option<String> {
        let quote = if self.take("'") { '\'' } else { self.take("\"").then_some('"')? };
        let (value, rest) = self.rest.split_once(quote)?;
        self.rest = rest;
        Some(value.to_owned())
    }

    fn either(&mut self) -> Option<Selector> {
        let first = self.both()?;
        let mut parts = vec![first];
        while self.take("||") {
            parts.push(self.both()?);
        }
        Some(if parts.len() == 1 { parts.remove(0) } else { Selector::Or(parts) })
    }

    fn both(&mut self) -> Option<Selector> {
        let first = self.one()?;
        let mut parts = vec![first];
        while self.take("&&") {
            parts.push(self.one()?);
        }
        Some(if parts.len() == 1 { parts.remove(0) } else { Selector::And(parts) })
    }

    fn one(&mut self) -> Option<Selector> {
        if self.depth == DEEPEST {
            return None;
        }
        self.depth += 1;
        let selector = if self.take("!") {
            self.one().map(Selector::not)
        } else if self.take("(") {
            self.either().filter(|_| self.take(")"))
        } else {
            self.condition()
        };
        self.depth -= 1;
        selector
    }

    fn condition(&mut self) -> Option<Selector> {
        let name = self.word()?;
        match name {
            "has" if self.take("(") => {
                let label = self.word()?.to_owned();
                return self.take(")").then_some(Selector::Has(label));
            }
            "all" if self.take("(") => return self.take(")").then(Selector::all),
            _ => {}
        }
        let name = name.to_owned();
        if self.take("==") {
            return Some(Selector::Is(name, self.value()?));
        }
        if self.take("!=") {
            return Some(Selector::Is(name, self.value()?).not());
        }
        match self.word()? {
            "in" => Some(Selector::In(name, self.values()?)),
            "not" => (self.word()? == "in").then_some(Selector::In(name, self.values()?).not()),
            "contains" => Some(Selector::Contains(name, self.value()?)),
            "starts" => (self.word()? == "with").then_some(Selector::StartsWith(name, self.value()?)),
            "ends" => (self.word()? == "with").then_some(Selector::EndsWith(name, self.value()?)),
            _ => None,
        }
    }

    /// `{ 'a', 'b' }`
    fn values(&mut self) -> Option<Vec<String>> {
        if !self.take("{") {
            return None;
        }
        let mut values = Vec::new();
        while !self.take("}") {
            if !values.is_empty() && !self.take(",") {
                return None;
            }
            values.push(self.value()?);
        }
        Some(values)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `app=web`, `tier=front-1`; of `secret` nothing is known.
    fn label(name: &str) -> Label<'static> {
        match name {
            "app" => Label::Is("web"),
            "example.com/tier" => Label::Is("front-1"),
            "secret" => Label::Unknown,
            _ => Label::Absent,
        }
    }

    fn holds(text: &str) -> Option<bool> {
        Selector::parse(text).unwrap_or_else(|| panic!("not understood: {text}")).holds(&label)
    }

    #[test]
    fn holds_as_in_calico() {
        let yes = [
            "",
            "  ",
            "all()",
            "all( )",
            "app == 'web'",
            "app==\"web\"",
            "app != 'db'",
            "absent != 'x'",
            "app in {'db', 'web'}",
            "app not in { 'db' }",
            "absent not in {'db'}",
            "app not in {}",
            "has(app)",
            "!has(absent)",
            "! has( absent )",
            "!!has(app)",
            "has(example.com/tier) && example.com/tier starts with 'front'",
            "example.com/tier ends with '-1' && example.com/tier contains 'ont'",
            "app == 'db' || has(app) && !(app == 'db')",
            "(app == 'web')",
            "has(app) || secret == 'x'",
        ];
        assert_eq!(yes.map(holds), [Some(true); 21]);
        let no = [
            "app == 'db'",
            "absent == ''",
            "absent in {'x'}",
            "app in {}",
            "!all()",
            "has(absent)",
            "absent contains ''",
            "has(absent) && secret == 'x'",
            "(has(app) || has(absent)) && has(absent)",
        ];
        assert_eq!(no.map(holds), [Some(false); 9]);
        let open = ["secret == 'x'", "!has(secret)", "has(app) && secret == 'x'", "secret in {'x'} || has(absent)"];
        assert_eq!(open.map(holds), [None; 4]);
    }

    #[test]
    fn what_is_not_understood_is_not_guessed_at() {
        let deep = "(".repeat(200) + "all()" + &")".repeat(200);
        let others =
            ["global()", "app", "app = 'web'", "app == web", "app == 'web", "app in 'web'", "app in {'a' 'b'}"];
        let more =
            ["has(app", "has()", "&& has(app)", "has(app) has(app)", "app not 'x'", "(all()", "all())", "!", "ä"];
        assert!(others.into_iter().chain(more).chain([deep.as_str()]).all(|text| Selector::parse(text).is_none()));
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in ".*") {
            let _understood_or_not = Selector::parse(&text);
        }

        /// Of the language's own words, so that the parser gets further than to the first.
        #[test]
        fn so_is_any_row_of_its_words(
            words in prop::collection::vec(
                prop::sample::select(vec![
                    "(", ")", "!", "&&", "||", "==", "!=", " in ", " not ", "has(", "all()", "{", "}", ",", "'a'", "'", "\"b\"", "app",
                    " starts with ", " ", "ä",
                ]),
                0..40,
            ),
        ) {
            if let Some(selector) = Selector::parse(&words.concat()) {
                let _known_or_not = selector.holds(&label);
            }
        }

        #[test]
        fn not_turns_it_round(text in prop::sample::select(vec!["app == 'web'", "has(x)", "secret == 'y'", "all()"])) {
            prop_assert_eq!(holds(&format!("!({text})")), holds(text).map(|holds| !holds));
        }
    }
}
