//! What is said on a channel between this machine and a VM: one command, its input, its output, its end.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

/// A command for the VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Request {
    /// Program and arguments.
    pub(super) words: Vec<String>,
    /// Names and values beside those the VM's init set.
    pub(super) environment: Vec<(String, String)>,
}

/// The most that a frame carries, bytes.
const LIMIT: usize = 1 << 20;

/// One message. On the wire: a byte for the kind, four for the length (little-endian), and that many.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Frame {
    /// To the VM: run this. The first one, once.
    Run(Request),
    /// To the VM: for the command's input.
    Input(Vec<u8>),
    /// To the VM: nothing more will come.
    InputEnds,
    /// From the VM: the command has been started.
    Started,
    /// From the VM: what the command wrote to its standard output.
    Output(Vec<u8>),
    /// From the VM: what it wrote to its standard error.
    Error(Vec<u8>),
    /// From the VM: it ended, with this code as a shell gives it. The last one.
    Ended(i32),
}

impl Frame {
    pub(super) fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let (kind, payload) = match self {
            Frame::Run(request) => (0, serde_json::to_vec(request)?),
            Frame::Input(bytes) => (1, bytes.clone()),
            Frame::InputEnds => (2, Vec::new()),
            Frame::Started => (3, Vec::new()),
            Frame::Output(bytes) => (4, bytes.clone()),
            Frame::Error(bytes) => (5, bytes.clone()),
            Frame::Ended(code) => (6, code.to_le_bytes().to_vec()),
        };
        let length = u32::try_from(payload.len()).map_err(io::Error::other)?;
        let mut bytes = vec![kind];
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&payload);
        to.write_all(&bytes)?;
        to.flush()
    }

    pub(super) fn read(from: &mut impl Read) -> io::Result<Frame> {
        let mut head = [0; 5];
        from.read_exact(&mut head)?;
        let [kind, length @ ..] = head;
        let length = u32::from_le_bytes(length) as usize;
        if length > LIMIT {
            return Err(io::Error::other(format!("a frame of {length} bytes")));
        }
        let mut payload = vec![0; length];
        from.read_exact(&mut payload)?;
        Ok(match kind {
            0 => Frame::Run(serde_json::from_slice(&payload)?),
            1 => Frame::Input(payload),
            2 => Frame::InputEnds,
            3 => Frame::Started,
            4 => Frame::Output(payload),
            5 => Frame::Error(payload),
            6 => Frame::Ended(i32::from_le_bytes(payload.try_into().map_err(|_| io::Error::other("no exit code"))?)),
            kind => return Err(io::Error::other(format!("a frame of kind {kind}"))),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_read_back_as_written() {
        let request = Request { words: vec!["a".to_owned()], environment: vec![("A".to_owned(), "b".to_owned())] };
        let frames = [
            Frame::Run(request),
            Frame::Input(vec![0, 255]),
            Frame::InputEnds,
            Frame::Started,
            Frame::Output(b"out".to_vec()),
            Frame::Error(Vec::new()),
            Frame::Ended(-1),
        ];
        let mut bytes = Vec::new();
        frames.iter().for_each(|frame| frame.write(&mut bytes).unwrap());
        let mut rest = bytes.as_slice();
        for frame in &frames {
            assert_eq!(&Frame::read(&mut rest).unwrap(), frame);
        }
        assert_eq!(Frame::read(&mut rest).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn nonsense_is_refused_before_memory_is_taken_for_it() {
        for bytes in [&b"\x04\xff\xff\xff\xff"[..], b"\x09\0\0\0\0", b"\x06\x01\0\0\0\0"] {
            assert!(Frame::read(&mut &*bytes).is_err(), "{bytes:?}");
        }
    }
}
