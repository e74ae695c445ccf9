//! A recording as pcapng, which Wireshark and tshark open: each time a packet was seen is a packet, its hops are its comments.
//!
//! Only headers were recorded. So packets are made of the fields that are known, cut off behind them (their captured length is shorter
//! than their length); the IPv4 header has its checksum, the transport header has 0 where it was not recorded. What encapsulates a
//! packet is told in its comment.

use std::{
    borrow::Cow,
    collections::HashMap,
    io::{self, Write},
    net::IpAddr,
    time::Duration,
};

use pcap_file::{
    DataLink, Endianness, PcapError,
    pcapng::{
        PcapNgBlock, PcapNgWriter,
        blocks::{
            enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption},
            interface_description::{InterfaceDescriptionBlock, InterfaceDescriptionOption},
            section_header::{SectionHeaderBlock, SectionHeaderOption},
        },
    },
};

use crate::{
    checksum::checksum,
    event::{L4, Packet, Record, Sighting},
    path::{
        Evidence,
        model::{Direction, Exchange, Hop},
    },
    render::steps,
    report::Place,
    session::DrivenNode,
};

/// Times are written in ns.
const NANOSECONDS: u8 = 9;

/// Writes a capture, exchange by exchange.
pub struct Capture<W: Write> {
    writer: PcapNgWriter<W>,
    interfaces: HashMap<Place, u32>,
}

/// A packet at a place.
struct Seen<'a> {
    place: Place,
    /// Since 1970, ns.
    time_ns: u64,
    packet: &'a Packet,
    comments: Vec<String>,
}

impl<W: Write> Capture<W> {
    /// Begins one.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn new(to: W) -> io::Result<Self> {
        let program = concat!("podpath ", env!("CARGO_PKG_VERSION"));
        let options = vec![SectionHeaderOption::UserApplication(Cow::Borrowed(program))];
        let section = SectionHeaderBlock { endianness: Endianness::Little, options, ..SectionHeaderBlock::default() };
        let writer = PcapNgWriter::with_section_header(to, section).map_err(written)?;
        Ok(Self { writer, interfaces: HashMap::new() })
    }

    /// Adds the packets of an exchange that was joined from what this index is of.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn add(&mut self, exchange: &Exchange, index: &Index<'_>) -> io::Result<()> {
        let mut seen: Vec<Seen<'_>> = Vec::new();
        let ways = [("request", Direction::Request, &exchange.request), ("reply", Direction::Reply, &exchange.reply)];
        for (way, direction, path) in ways {
            let mut unseen = Vec::new();
            for step in steps(path, direction) {
                unseen.push(format!("exchange {}, {way}: {}", exchange.seq, step.what));
                if let Some(found) = index.packet(exchange, step.hop) {
                    seen.push(Seen { comments: std::mem::take(&mut unseen), ..found });
                }
            }
            // What has no packet of its own belongs to the last that was seen.
            if let Some(last) = seen.last_mut() {
                last.comments.extend(unseen);
            }
        }
        seen.iter().try_for_each(|seen| self.write(seen))
    }

    fn write(&mut self, seen: &Seen<'_>) -> io::Result<()> {
        let interface_id = self.interface(&seen.place)?;
        let data = bytes(seen.packet);
        let timestamp = Duration::from_nanos(seen.time_ns);
        let comments = seen.comments.iter().map(|text| EnhancedPacketOption::Comment(Cow::Borrowed(text)));
        let block = EnhancedPacketBlock {
            interface_id,
            timestamp,
            original_len: u32::from(seen.packet.ip_len).max(u32::try_from(data.len()).unwrap_or(u32::MAX)),
            data: Cow::Owned(data),
            options: comments.collect(),
        };
        self.block(block)
    }

    /// The number of a place; one that is new is described first.
    fn interface(&mut self, place: &Place) -> io::Result<u32> {
        if let Some(known) = self.interfaces.get(place) {
            return Ok(*known);
        }
        let number = u32::try_from(self.interfaces.len()).unwrap_or(u32::MAX);
        let Place { node, pod, interface } = place;
        let name = pod.as_ref().map_or_else(|| format!("{node} {interface}"), |pod| format!("pod {pod} {interface}"));
        let description = format!("{interface} on node {node}");
        let options = vec![
            InterfaceDescriptionOption::IfName(Cow::Owned(name)),
            InterfaceDescriptionOption::IfDescription(Cow::Owned(description)),
            InterfaceDescriptionOption::IfTsResol(NANOSECONDS),
        ];
        self.block(InterfaceDescriptionBlock { linktype: DataLink::RAW, snaplen: 0, options })?;
        self.interfaces.insert(place.clone(), number);
        Ok(number)
    }

    fn block<'b>(&mut self, block: impl PcapNgBlock<'b>) -> io::Result<()> {
        self.writer.write_block(&block.into_block()).map(drop).map_err(written)
    }

    /// Ends it.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn finish(self) -> io::Result<()> {
        self.writer.into_inner().flush()
    }
}

fn written(error: PcapError) -> io::Error {
    match error {
        PcapError::IoError(error) => error,
        other => io::Error::other(other),
    }
}

/// What each node saw when.
pub struct Index<'a> {
    /// By node, time by its clock in ns, and interface.
    sightings: HashMap<(&'a str, u64, u32), &'a Sighting>,
    /// By node: CLOCK_REALTIME - CLOCK_MONOTONIC, ns.
    realtime: HashMap<&'a str, i64>,
}

impl<'a> Index<'a> {
    /// Of this evidence, from these nodes.
    pub fn new(evidence: &'a Evidence, nodes: &'a [DrivenNode]) -> Self {
        let mut sightings = HashMap::new();
        for node in &evidence.nodes {
            for record in &node.records {
                if let Record::Sighting(s) = record {
                    sightings.insert((node.name.as_str(), s.time_ns, s.ifindex), s);
                }
            }
        }
        let offset = |node: &'a DrivenNode| Some((node.name.as_str(), node.hello.as_ref()?.about.realtime_offset_ns));
        Self { sightings, realtime: nodes.iter().filter_map(offset).collect() }
    }

    /// The packet as a hop shows it: the sighting of its moment.
    fn packet(&self, exchange: &Exchange, hop: &Hop) -> Option<Seen<'a>> {
        let at = i64::try_from(hop.at_ns?).ok()?;
        let moment = u64::try_from(exchange.clock_of(&hop.node)? + at).ok()?;
        let sighting = self.sightings.get(&(&*hop.node, moment, hop.ifindex?))?;
        // By the clock of the first hop's node: the packets of an exchange keep their order whatever the others' clocks show.
        let (first, began) = exchange.began()?;
        let start = i128::from(began) + i128::from(*self.realtime.get(first)?);
        let time_ns = u64::try_from(start + i128::from(at)).ok()?;
        let place = Place { node: hop.node.clone(), pod: hop.pod.clone(), interface: hop.interface.clone()? };
        Some(Seen { place, time_ns, packet: &sighting.packet, comments: Vec::new() })
    }
}

/// The headers of a packet, as far as they are known.
fn bytes(packet: &Packet) -> Vec<u8> {
    let (protocol, transport) = transport(packet);
    let payload = packet.ip_len;
    let mut bytes = Vec::new();
    match (packet.src, packet.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            // Version 4, five words of header; not fragmented, which is not recorded.
            bytes.extend([0x45, 0]);
            bytes.extend(payload.to_be_bytes());
            bytes.extend(packet.ip_id.to_be_bytes());
            bytes.extend([0, 0, packet.ttl, protocol, 0, 0]);
            bytes.extend(src.octets());
            bytes.extend(dst.octets());
            let sum = checksum(&bytes).to_be_bytes();
            bytes[10..12].copy_from_slice(&sum);
        }
        (src, dst) => {
            let octets = |address| match address {
                IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
                IpAddr::V6(v6) => v6.octets(),
            };
            bytes.extend([0x60, 0, 0, 0]);
            bytes.extend(payload.saturating_sub(40).to_be_bytes());
            bytes.extend([protocol, packet.ttl]);
            bytes.extend(octets(src));
            bytes.extend(octets(dst));
        }
    }
    bytes.extend(transport);
    bytes.truncate(usize::from(packet.ip_len).max(20));
    bytes
}

/// The protocol's number, and its header with what was recorded behind it.
fn transport(packet: &Packet) -> (u8, Vec<u8>) {
    let mut bytes = Vec::new();
    let protocol = match packet.l4 {
        L4::Icmp { kind, code, id, seq, nonce } => {
            bytes.extend([kind, code, 0, 0]);
            [id, seq].iter().for_each(|field| bytes.extend(field.to_be_bytes()));
            bytes.extend(nonce.to_be_bytes());
            if packet.src.is_ipv4() { 1 } else { 58 }
        }
        L4::Tcp { src_port, dst_port, seq, ack, flags, payload } => {
            [src_port, dst_port].iter().for_each(|port| bytes.extend(port.to_be_bytes()));
            [seq, ack].iter().for_each(|field| bytes.extend(field.to_be_bytes()));
            // What lies between the header and the data: options, which are not recorded.
            let ip = if packet.src.is_ipv4() { 20 } else { 40 };
            let header = packet.ip_len.saturating_sub(payload).saturating_sub(ip).clamp(20, 60) / 4 * 4;
            bytes.extend([(header * 4) as u8, flags, 0, 0, 0, 0, 0, 0]);
            // NOP (RFC 9293, 3.1).
            bytes.resize(usize::from(header), 1);
            6
        }
        L4::Udp { src_port, dst_port, checksum, nonce } => {
            let ip = if packet.src.is_ipv4() { 20 } else { 40 };
            let length = packet.ip_len.saturating_sub(ip);
            [src_port, dst_port, length, checksum].iter().for_each(|field| bytes.extend(field.to_be_bytes()));
            bytes.extend(nonce.to_be_bytes());
            17
        }
        L4::Other { protocol } => protocol,
    };
    (protocol, bytes)
}
