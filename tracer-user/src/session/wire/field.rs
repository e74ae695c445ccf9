//! Fields of wire messages -> values, with an error that names message and field.

use std::net::IpAddr;

use ipnet::IpNet;

/// A message that does not decode.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Not protobuf, or not of these types.
    #[error("a frame does not decode: {0}")]
    Protobuf(#[from] prost::DecodeError),
    /// A record is not protobuf.
    #[error("a record does not decode: {reason}")]
    Record {
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The frame's length is over the limit.
    #[error("broken framing: {reason}")]
    Framing {
        /// The codec's word.
        reason: String,
    },
    /// A field that must be there is not.
    #[error("message {message}: no {field}")]
    Missing {
        /// Name of the message.
        message: &'static str,
        /// Name of the field.
        field: &'static str,
    },
    /// An address of neither 4 nor 16 bytes.
    #[error("message {message}: {field} has {length} bytes, an address has 4 or 16")]
    AddressLength {
        /// Name of the message.
        message: &'static str,
        /// Name of the field.
        field: &'static str,
        /// Bytes.
        length: usize,
    },
    /// A number that its field cannot have.
    #[error("message {message}: {field} {value} is out of range")]
    Range {
        /// Name of the message.
        message: &'static str,
        /// Name of the field.
        field: &'static str,
        /// The number.
        value: u64,
    },
    /// A value of an enumeration that this program does not know. In a record it may come from a newer peer.
    #[error("message {message}: unknown {field} {value}")]
    Unknown {
        /// Name of the message.
        message: &'static str,
        /// Name of the field.
        field: &'static str,
        /// The value.
        value: u32,
    },
    /// A fact about something that was not told before.
    #[error("message facts: {part} before its {whole}")]
    Order {
        /// `link`
        part: &'static str,
        /// `namespace`
        whole: &'static str,
    },
}

/// An address as 4 or 16 bytes.
pub(super) fn bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// The fields of one message.
#[derive(Clone, Copy)]
pub(super) struct Fields(pub(super) &'static str);

impl Fields {
    pub(super) fn address(self, field: &'static str, bytes: &[u8]) -> Result<IpAddr, Malformed> {
        if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
            return Ok(IpAddr::from(v4));
        }
        <[u8; 16]>::try_from(bytes).map(IpAddr::from).map_err(|_| Malformed::AddressLength {
            message: self.0,
            field,
            length: bytes.len(),
        })
    }

    /// An address that may be absent; absent is not "empty".
    pub(super) fn maybe_address(self, field: &'static str, bytes: Option<&[u8]>) -> Result<Option<IpAddr>, Malformed> {
        bytes.map(|bytes| self.address(field, bytes)).transpose()
    }

    pub(super) fn narrow<T: TryFrom<u32>>(self, field: &'static str, value: u32) -> Result<T, Malformed> {
        T::try_from(value).map_err(|_| Malformed::Range { message: self.0, field, value: value.into() })
    }

    pub(super) fn maybe_narrow<T: TryFrom<u32>>(
        self,
        field: &'static str,
        value: Option<u32>,
    ) -> Result<Option<T>, Malformed> {
        value.map(|value| self.narrow(field, value)).transpose()
    }

    pub(super) fn required<T>(self, field: &'static str, value: Option<T>) -> Result<T, Malformed> {
        value.ok_or(Malformed::Missing { message: self.0, field })
    }

    pub(super) fn unknown(self, field: &'static str, value: u32) -> Malformed {
        Malformed::Unknown { message: self.0, field, value }
    }

    pub(super) fn net(self, field: &'static str, net: Option<Net>) -> Result<IpNet, Malformed> {
        let net = self.required(field, net)?;
        let address = self.address(field, &net.address)?;
        let prefix = self.narrow(field, net.prefix)?;
        IpNet::new(address, prefix).map_err(|_| Malformed::Range { message: self.0, field, value: net.prefix.into() })
    }
}

/// An address with a prefix length; host bits are kept.
#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::session) struct Net {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) address: Vec<u8>,
    #[prost(uint32, tag = "2")]
    pub(super) prefix: u32,
}

impl From<IpNet> for Net {
    fn from(net: IpNet) -> Self {
        Self { address: bytes(net.addr()), prefix: net.prefix_len().into() }
    }
}
