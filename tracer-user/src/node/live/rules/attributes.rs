//! nfnetlink messages with their attributes left as bytes.
//!
//! `netlink-packet-netfilter` decodes six of nftables' forty expressions and gives up on messages it does not know; a rule
//! left out would make a wrong culprit of another. So the bytes are kept, and read where something is made of them.

use netlink_packet_core::{NetlinkDeserializable, NetlinkHeader, NetlinkSerializable};

/// `struct nfgenmsg`: family, version, resource id (`uapi/linux/netfilter/nfnetlink.h`), bytes.
const GENERIC_HEADER: usize = 4;
/// Header of an attribute: length and type, bytes.
const ATTRIBUTE_HEADER: usize = 4;
/// `NLA_F_NESTED` and `NLA_F_NET_BYTEORDER` are no part of the type.
const TYPE_MASK: u16 = 0x3fff;
const NESTED: u16 = 0x8000;

/// One nfnetlink message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::node::live) struct Raw {
    /// Subsystem << 8 | message.
    pub(in crate::node::live) kind: u16,
    /// NFPROTO_*.
    pub(in crate::node::live) family: u8,
    /// Big-endian in the message.
    pub(in crate::node::live) resource: u16,
    /// The attributes.
    pub(in crate::node::live) body: Vec<u8>,
}

impl Raw {
    pub(in crate::node::live) fn new(kind: u16, family: u8) -> Self {
        Self { kind, family, ..Self::default() }
    }
}

impl NetlinkSerializable for Raw {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        GENERIC_HEADER + self.body.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        let [high, low] = self.resource.to_be_bytes();
        buffer[..GENERIC_HEADER].copy_from_slice(&[self.family, 0, high, low]);
        buffer[GENERIC_HEADER..].copy_from_slice(&self.body);
    }
}

impl NetlinkDeserializable for Raw {
    type Error = netlink_packet_core::DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, Self::Error> {
        let [family, _version, high, low, body @ ..] = payload else {
            return Err("an nfnetlink message shorter than its header".into());
        };
        let resource = u16::from_be_bytes([*high, *low]);
        Ok(Self { kind: header.message_type, family: *family, resource, body: body.to_vec() })
    }
}

/// The attributes in `bytes`, as type and value. Ends where they stop making sense.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (header, _) = bytes.split_at_checked(ATTRIBUTE_HEADER)?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & TYPE_MASK;
        let value = bytes.get(ATTRIBUTE_HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The value of the first attribute `kind`.
pub(super) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(other, _)| *other == kind).map(|(_, value)| value)
}

/// A big-endian number, as nftables has nearly all of its.
pub(super) fn be32(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

/// A big-endian number.
pub(super) fn be64(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}

/// `u32` of attribute `kind`.
pub(in crate::node::live) fn number(bytes: &[u8], kind: u16) -> Option<u32> {
    attribute(bytes, kind).and_then(be32)
}

/// Text up to its first NUL.
pub(super) fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// Text of attribute `kind`.
pub(super) fn string(bytes: &[u8], kind: u16) -> Option<String> {
    attribute(bytes, kind).map(text)
}

/// Appends an attribute.
pub(in crate::node::live) fn put(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(ATTRIBUTE_HEADER + value.len()).unwrap_or(u16::MAX);
    body.extend(length.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

/// Appends an attribute that holds text, with its NUL.
pub(super) fn put_text(body: &mut Vec<u8>, kind: u16, value: &str) {
    put(body, kind, &[value.as_bytes(), &[0]].concat());
}

/// Appends an attribute that holds attributes.
pub(super) fn put_nested(body: &mut Vec<u8>, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) {
    let mut inside = Vec::new();
    fill(&mut inside);
    put(body, kind | NESTED, &inside);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_is_found_again() {
        let mut body = Vec::new();
        put_text(&mut body, 1, "filter");
        put_nested(&mut body, 2, |inside| put(inside, 3, &7u32.to_be_bytes()));
        assert_eq!(string(&body, 1).as_deref(), Some("filter"));
        assert_eq!(number(attribute(&body, 2).unwrap(), 3), Some(7));
        assert_eq!(attribute(&body, 4), None);
        assert_eq!(attributes(&body[..body.len() - 1]).count(), 1, "a cut attribute ends the list");
    }
}
