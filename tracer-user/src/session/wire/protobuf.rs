//! Protobuf's encoding, for the records alone: there are millions of them, and what a library makes of them in between costs more than
//! all else. Everything else goes by prost.

use super::field::Malformed;

/// A field that takes a varint.
const VARINT: u8 = 0;
const FIXED64: u8 = 1;
/// A field with its length: bytes, a string, a message.
const DELIMITED: u8 = 2;
const FIXED32: u8 = 5;

fn key(tag: u8, kind: u8) -> u8 {
    debug_assert!((1..16).contains(&tag), "its key takes one byte");
    tag << 3 | kind
}

/// Writes fields. As in protobuf, what is 0 or false is left out unless it stands for something of its own.
pub(super) struct Writer<'b>(pub(super) &'b mut Vec<u8>);

impl Writer<'_> {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    /// A number, or nothing for 0.
    pub(super) fn number(&mut self, tag: u8, value: impl Into<u64>) {
        let value = value.into();
        if value != 0 {
            self.set(tag, value);
        }
    }

    /// A number, also 0.
    pub(super) fn set(&mut self, tag: u8, value: impl Into<u64>) {
        self.0.push(key(tag, VARINT));
        self.varint(value.into());
    }

    pub(super) fn fixed64(&mut self, tag: u8, value: u64) {
        if value != 0 {
            self.0.push(key(tag, FIXED64));
            self.0.extend_from_slice(&value.to_le_bytes());
        }
    }

    pub(super) fn fixed32(&mut self, tag: u8, value: u32) {
        if value != 0 {
            self.0.push(key(tag, FIXED32));
            self.0.extend_from_slice(&value.to_le_bytes());
        }
    }

    pub(super) fn bytes(&mut self, tag: u8, bytes: &[u8]) {
        self.0.push(key(tag, DELIMITED));
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    /// A message with these fields.
    pub(super) fn message(&mut self, tag: u8, fields: impl FnOnce(&mut Writer<'_>)) {
        self.0.push(key(tag, DELIMITED));
        let at = self.0.len();
        // Nearly all lengths take one byte.
        self.0.push(0);
        fields(&mut Writer(self.0));
        let length = self.0.len() - at - 1;
        match u8::try_from(length) {
            Ok(length) if length < 0x80 => self.0[at] = length,
            _ => {
                let mut prefix = Vec::with_capacity(4);
                Writer(&mut prefix).varint(length as u64);
                self.0.splice(at..=at, prefix);
            }
        }
    }
}

/// What a field has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value<'a> {
    Number(u64),
    Fixed64(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
}

fn malformed(reason: &'static str) -> Malformed {
    Malformed::Record { reason }
}

impl<'a> Value<'a> {
    pub(super) fn number(self) -> Result<u64, Malformed> {
        if let Self::Number(value) = self { Ok(value) } else { Err(malformed("a field that is no number")) }
    }

    /// Of 32 bits; what is beyond is cut off, as protobuf has it.
    pub(super) fn word(self) -> Result<u32, Malformed> {
        self.number().map(|value| value as u32)
    }

    pub(super) fn fixed64(self) -> Result<u64, Malformed> {
        if let Self::Fixed64(value) = self { Ok(value) } else { Err(malformed("a field that has no 8 bytes")) }
    }

    pub(super) fn fixed32(self) -> Result<u32, Malformed> {
        if let Self::Fixed32(value) = self { Ok(value) } else { Err(malformed("a field that has no 4 bytes")) }
    }

    pub(super) fn bytes(self) -> Result<&'a [u8], Malformed> {
        if let Self::Bytes(bytes) = self { Ok(bytes) } else { Err(malformed("a field that has no length")) }
    }

    pub(super) fn text(self) -> Result<String, Malformed> {
        let text = std::str::from_utf8(self.bytes()?).map_err(|_| malformed("a text that is not UTF-8"))?;
        Ok(text.to_owned())
    }
}

/// Reads fields one after the other: the tag of each, and what it has.
///
/// # Errors
/// The bytes are no protobuf.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    fn byte(&mut self) -> Result<u8, Malformed> {
        let (first, rest) = self.0.split_first().ok_or_else(|| malformed("it ends within a field"))?;
        self.0 = rest;
        Ok(*first)
    }

    fn varint(&mut self) -> Result<u64, Malformed> {
        let first = self.byte()?;
        if first < 0x80 {
            return Ok(first.into());
        }
        let mut value = u64::from(first & 0x7f);
        for shift in (7..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return if shift == 63 && byte > 1 {
                    Err(malformed("a number of more than 64 bits"))
                } else {
                    Ok(value)
                };
            }
        }
        Err(malformed("a number of more than 64 bits"))
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or_else(|| malformed("it ends within a field"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (taken, rest) = self.0.split_first_chunk().ok_or_else(|| malformed("it ends within a field"))?;
        self.0 = rest;
        Ok(*taken)
    }

    /// The next field; None at the end.
    pub(super) fn field(&mut self) -> Result<Option<(u32, Value<'a>)>, Malformed> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let key = u32::try_from(self.varint()?).map_err(|_| malformed("a field's key of more than 32 bits"))?;
        let value = match (key & 7) as u8 {
            VARINT => Value::Number(self.varint()?),
            FIXED64 => Value::Fixed64(u64::from_le_bytes(self.array()?)),
            DELIMITED => {
                let length = self.varint()?;
                Value::Bytes(self.take(usize::try_from(length).unwrap_or(usize::MAX))?)
            }
            FIXED32 => Value::Fixed32(u32::from_le_bytes(self.array()?)),
            _ => return Err(malformed("a field of no known encoding")),
        };
        if key < 8 { Err(malformed("a field without a tag")) } else { Ok(Some((key >> 3, value))) }
    }
}
