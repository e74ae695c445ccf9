//! `podpath report`.

use super::{
    NOT_ALL,
    args::{Format, ReportArgs},
    error::Error,
    terminal::{Surroundings, write_stderr, write_stdout},
};
use crate::{
    path::model::{Endpoint, Exchange, Outcome, Trace, TracedNode},
    recording::{Header, Recording},
    render,
    report::{self, Report},
};

/// Reads the recording and prints.
///
/// # Errors
/// It cannot be read.
pub(super) fn run(args: &ReportArgs) -> Result<u8, Error> {
    let mut recording = Recording::open(&args.recording)?;
    let (report, trace) = gather(&mut recording, usize::from(args.slowest.unwrap_or(0)))?;
    let contents = &recording.contents;
    let look = Surroundings::of_stdout().look();
    let style = |verbose| render::Style { color: look.color, width: look.width, verbose };
    let json = |bytes: Vec<u8>| match args.output {
        Format::Yaml => super::yaml(&bytes).into_bytes(),
        _ => bytes,
    };
    if let Some(path) = &args.against {
        let mut older = Recording::open(path)?;
        let (before, _) = gather(&mut older, 0)?;
        if let Some(others) = others(&contents.header, &older.contents.header) {
            write_stderr(&format!("warning: {} is of {others}: other ends are compared\n", path.display()));
        }
        let findings = report::compare(&report, &before);
        let now = (&report, contents);
        let bytes = match args.output {
            Format::Json | Format::Yaml => json(report::comparison(&findings, now, &before)),
            Format::Text | Format::Wide => {
                render::comparison(&findings, now, (&before, &older.contents), &style(false)).into_bytes()
            }
        };
        write_stdout(&bytes).map_err(Error::Output)?;
        return Ok(if findings.is_empty() { 0 } else { NOT_ALL });
    }
    let bytes = match (args.output, args.slowest) {
        (Format::Json | Format::Yaml, Some(_)) => json(render::json(&trace)),
        (Format::Json | Format::Yaml, None) => json(report::json(&report, contents)),
        (Format::Text | Format::Wide, Some(_)) => slowest(&trace, &style(args.output == Format::Wide)),
        (Format::Text | Format::Wide, None) => render::report(&report, contents, &style(false)).into_bytes(),
    };
    write_stdout(&bytes).map_err(Error::Output)?;
    let all = report.exchanges() > 0 && report.ended(Outcome::Delivered) == report.exchanges();
    Ok(if all { 0 } else { NOT_ALL })
}

/// The ends of the older recording, if they are not those of the other: who has a name may have got another address since.
fn others(header: &Header, older: &Header) -> Option<String> {
    let name = |end: &Endpoint| end.name.clone().unwrap_or_else(|| end.address.to_string());
    let ends = |header: &Header| [&header.ends.source, &header.ends.destination].map(name);
    let of_older = ends(older);
    (ends(header) != of_older).then(|| of_older.join(" -> "))
}

/// Each exchange on its own: they have nothing in common but that they were slow, and what is to be known of the recording.
fn slowest(trace: &Trace, style: &render::Style) -> Vec<u8> {
    let one = |(index, exchange): (usize, &Exchange)| {
        let exchanges = vec![exchange.clone()];
        let warnings = if index == 0 { trace.warnings.clone() } else { Vec::new() };
        render::text(&Trace { exchanges, warnings, ..trace.clone() }, style)
    };
    trace.exchanges.iter().enumerate().map(one).collect::<Vec<_>>().join("\n").into_bytes()
}

/// All exchanges together, and the slowest as a trace.
fn gather(recording: &mut Recording, keep: usize) -> Result<(Report, Trace), Error> {
    let mut report = Report::new(keep);
    let joined = recording.exchanges(report::PARTS, |exchange, part| report.add(exchange, part))?;
    let contents = &mut recording.contents;
    contents.driven.warnings.extend(report.left_out.sentence());
    let header = &contents.header;
    let nodes = contents.driven.nodes.iter().map(|node| TracedNode {
        name: node.name.clone(),
        kernel: node.hello.as_ref().map(|hello| hello.about.kernel.clone()),
        complete: contents.driven.evidence.nodes.iter().any(|seen| seen.name == node.name && seen.complete),
        address: None,
    });
    let trace = Trace {
        schema: "podpath.trace/v1",
        source: header.ends.source.clone(),
        destination: header.ends.destination.clone(),
        service: header.service.clone(),
        exchanges: report.slowest.clone(),
        routers: joined.routers,
        lost_events: contents.lost_events(),
        warnings: contents.driven.warnings.clone(),
        context: header.context.clone(),
        started: header.started.clone(),
        nodes: nodes.collect(),
        smallest_mtu: joined.smallest_mtu,
        smallest_mtu_at: joined.smallest_mtu_at,
        probe: header.traffic.clone(),
    };
    Ok((report, trace))
}

#[cfg(test)]
mod tests {
    use super::{Header, others};
    use crate::path::{Ends, model::Endpoint};

    #[test]
    fn recordings_of_other_ends_are_told_apart() {
        let end = |name: Option<&str>, address: [u8; 4]| Endpoint {
            name: name.map(str::to_owned),
            address: address.into(),
            node: None,
        };
        let header = |source, destination| Header {
            program: String::new(),
            started: String::new(),
            context: None,
            ends: Ends { source, destination },
            service: None,
            traffic: String::new(),
            nodes: Vec::new(),
        };
        let web = |last| end(Some("shop/web"), [10, 0, 0, last]);
        let now = header(web(1), end(None, [8, 8, 8, 8]));
        assert_eq!(others(&now, &header(web(2), end(None, [8, 8, 8, 8]))), None, "another address of the same pod");
        let other = others(&now, &header(web(1), end(None, [1, 1, 1, 1])));
        assert_eq!(other.as_deref(), Some("shop/web -> 1.1.1.1"));
    }
}
