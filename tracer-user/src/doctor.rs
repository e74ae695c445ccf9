//! What this machine's kernel and user can do, what is missing, and what that costs.

use serde::Serialize;

#[cfg(live)]
mod system;

/// One thing that tracing needs or profits from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Short name: `kernel BTF`.
    pub name: String,
    /// Whether it is there.
    pub state: State,
    /// What was found.
    pub detail: String,
    /// What its lack costs, and the way out; shown unless `state` is [`State::Ok`].
    pub cost: String,
}

/// What a check found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It is there.
    Ok,
    /// It could not be found out.
    Unknown,
    /// It is missing; traces show less.
    Missing,
    /// It is missing, and without it there is no trace.
    Fatal,
}

/// All checks of this machine. Some load programs into the kernel, and unload them again.
pub fn all() -> Vec<Check> {
    #[cfg(live)]
    return [system::checks(), crate::probe::doctor::checks()].concat();
    #[cfg(not(live))]
    return vec![not_here()];
}

/// What a podpath finds that cannot trace the machine it runs on.
#[cfg(any(not(live), test))]
fn not_here() -> Check {
    let (name, detail, way_out) = if cfg!(target_os = "linux") {
        ("podpath", "built without its cargo feature `agent`", "to check it, build podpath with its default features")
    } else {
        ("operating system", std::env::consts::OS, "nodes are: run podpath doctor there")
    };
    let cost = format!("nothing is traced on this machine; {way_out}");
    Check { name: name.to_owned(), state: State::Fatal, detail: detail.to_owned(), cost }
}

/// Whether nothing that is missing prevents a trace.
pub fn can_trace(checks: &[Check]) -> bool {
    checks.iter().all(|check| check.state != State::Fatal)
}

/// As programs read it: one object, `podpath.doctor/v1`, which only grows.
pub fn json(checks: &[Check]) -> String {
    format!(
        "{:#}\n",
        serde_json::json!({ "schema": "podpath.doctor/v1", "can_trace": can_trace(checks), "checks": checks })
    )
}

/// As people read it.
pub fn text(checks: &[Check], color: bool, width: usize) -> String {
    let names = checks.iter().map(|check| check.name.chars().count()).max().unwrap_or(0);
    let indent = names + STATE_WIDTH + 4;
    let mut text = String::new();
    for Check { name, state, detail, cost } in checks {
        let (word, escape) = match state {
            State::Ok => ("ok", "32"),
            State::Unknown => ("unknown", "33"),
            State::Missing => ("missing", "33"),
            State::Fatal => ("FATAL", "31"),
        };
        let padded = format!("{word:STATE_WIDTH$}");
        let word = if color { format!("\x1b[{escape}m{padded}\x1b[0m") } else { padded };
        let mut lines = wrap(detail, width.saturating_sub(indent));
        if *state != State::Ok {
            lines.extend(wrap(cost, width.saturating_sub(indent)));
        }
        let mut lines = lines.into_iter();
        text += format!("{word}  {name:names$}  {}", lines.next().unwrap_or_default()).trim_end();
        text.push('\n');
        for line in lines {
            text += &format!("{:indent$}{line}\n", "");
        }
    }
    text.push('\n');
    let lacking = checks.iter().filter(|check| check.state == State::Missing).count();
    text += match (can_trace(checks), lacking) {
        (false, _) => "This machine cannot be traced as it is: repair what is FATAL.\n",
        (true, 0) => "This machine can be traced.\n",
        (true, _) => "This machine can be traced; what is missing costs what is said beside it.\n",
    };
    text
}

const STATE_WIDTH: usize = 7;

/// Lines of at most `width` columns, broken at spaces; a longer word has a line of its own.
pub(crate) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, state: State, detail: &str, cost: &str) -> Check {
        Check { name: name.to_owned(), state, detail: detail.to_owned(), cost: cost.to_owned() }
    }

    fn some() -> Vec<Check> {
        vec![
            check("kernel", State::Ok, "6.12.107", "not shown"),
            check(
                "kernel symbols",
                State::Missing,
                "addresses are hidden",
                "a drop is shown without the kernel function that freed the packet; run as root",
            ),
            check("lockdown", State::Unknown, "", "nothing, unless it is `confidentiality`"),
        ]
    }

    #[test]
    fn a_person_reads_what_is_missing_and_what_that_costs() {
        insta::assert_snapshot!(text(&some(), false, 72));
    }

    #[test]
    fn a_program_reads_all_of_it() {
        insta::assert_snapshot!(json(&some()[1..2]), @r#"
        {
          "can_trace": true,
          "checks": [
            {
              "cost": "a drop is shown without the kernel function that freed the packet; run as root",
              "detail": "addresses are hidden",
              "name": "kernel symbols",
              "state": "missing"
            }
          ],
          "schema": "podpath.doctor/v1"
        }
        "#);
    }

    #[test]
    fn what_is_fatal_is_said_last() {
        let mut checks = some();
        checks.push(check(
            "kernel BTF",
            State::Fatal,
            "/sys/kernel/btf/vmlinux: not found",
            "nothing can be traced; use a kernel with CONFIG_DEBUG_INFO_BTF",
        ));
        assert!(!can_trace(&checks));
        insta::assert_snapshot!(text(&checks, true, 200));
    }

    #[test]
    fn who_cannot_trace_here_says_why() {
        insta::assert_snapshot!(text(&[not_here()], false, 120), @r"
        FATAL    podpath  built without its cargo feature `agent`
                          nothing is traced on this machine; to check it, build podpath with its default features

        This machine cannot be traced as it is: repair what is FATAL.
        ");
    }

    #[test]
    fn nothing_missing_is_said_so() {
        insta::assert_snapshot!(text(&some()[..1], false, 80));
    }
}
