//! `podpath convert`.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
};

use super::{
    args::{Conversion, ConvertArgs},
    error::Error,
    terminal::write_stderr,
};
use crate::{
    path::model::Exchange,
    recording::{
        self, Recording,
        capture::{Capture, Index},
    },
    render,
};

/// Reads the recording and writes it in another format.
///
/// # Errors
/// It cannot be read, or what comes of it not be written.
pub(super) fn run(args: &ConvertArgs) -> Result<u8, Error> {
    let mut recording = Recording::open(&args.recording)?;
    let failed = |source| match &args.write {
        Some(path) => recording::Error::File { path: path.clone(), what: "write", source }.into(),
        None => Error::Output(source),
    };
    let to: Box<dyn Write> = match &args.write {
        Some(path) => Box::new(File::create(path).map_err(failed)?),
        None => Box::new(io::stdout().lock()),
    };
    let out = BufWriter::new(to);
    let out = match args.to {
        Conversion::Jsonl => Output::Lines(out),
        Conversion::Pcapng => Output::Capture(Box::new(Capture::new(out).map_err(failed)?)),
    };
    match convert(&mut recording, out, failed) {
        // A reader that has gone (`| head`) wants no more.
        Err(Error::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(0),
        converted => converted.map(|()| 0),
    }
}

/// Where exchanges go.
enum Output<W: Write> {
    Lines(W),
    Capture(Box<Capture<W>>),
}

impl<W: Write> Output<W> {
    fn add(&mut self, exchange: &Exchange, index: &Index<'_>) -> io::Result<()> {
        match self {
            Self::Lines(out) => out.write_all(&render::json_line(exchange)),
            Self::Capture(capture) => capture.add(exchange, index),
        }
    }

    fn finish(self) -> io::Result<()> {
        match self {
            Self::Lines(mut out) => out.flush(),
            Self::Capture(capture) => capture.finish(),
        }
    }
}

fn convert(
    recording: &mut Recording,
    mut out: Output<impl Write>,
    failed: impl Fn(io::Error) -> Error,
) -> Result<(), Error> {
    let contents = recording.contents.clone();
    for window in recording.windows() {
        let window = window?;
        let joined = window.join(&contents.header.ends, &contents.names);
        let index = Index::new(&window.evidence, &contents.driven.nodes);
        for exchange in joined.exchanges.iter().filter(|exchange| window.has(exchange)) {
            out.add(exchange, &index).map_err(&failed)?;
        }
    }
    out.finish().map_err(failed)?;
    let told = recording.contents.driven.warnings.len();
    recording.tell_left_out();
    let new = recording.contents.driven.warnings[told..].iter();
    new.for_each(|warning| write_stderr(&format!("warning: {warning}\n")));
    Ok(())
}
