//! `podpath report`.

use super::{
    args::{Format, ReportArgs},
    error::Error,
    terminal::{Surroundings, write_stderr, write_stdout},
};
use crate::{
    path::model::{Exchange, Outcome, Trace, TracedNode},
    recording::Recording,
    render,
    report::{self, Report},
};

/// Not all completed.
const NOT_ALL: u8 = 3;

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
    if !contents.closed && args.slowest.is_some() {
        contents.driven.warnings.iter().for_each(|warning| write_stderr(&format!("warning: {warning}\n")));
    }
    let all = report.exchanges() > 0 && report.ended(Outcome::Delivered) == report.exchanges();
    Ok(if all { 0 } else { NOT_ALL })
}

/// Each exchange on its own: they have nothing in common but that they were slow.
fn slowest(trace: &Trace, style: &render::Style) -> Vec<u8> {
    let one = |exchange: &Exchange| {
        let exchanges = vec![exchange.clone()];
        render::text(&Trace { exchanges, ..trace.clone() }, style)
    };
    trace.exchanges.iter().map(one).collect::<Vec<_>>().join("\n").into_bytes()
}

/// All exchanges together, and the slowest as a trace.
fn gather(recording: &mut Recording, keep: usize) -> Result<(Report, Trace), Error> {
    let contents = recording.contents.clone();
    let header = &contents.header;
    let mut report = Report::new(keep);
    let joined = recording.exchanges(report::PARTS, |exchange, part| report.add(exchange, part))?;
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
