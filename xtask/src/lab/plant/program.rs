//! Programs on devices: XDP and traffic control, as a CNI of eBPF has them. A few instructions in an object file, which
//! `ip` and `tc` load; nothing of it outlives the device.

use std::fs;
use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::{Planted, netns, run, words};

/// Where a program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// XDP in the driver: before there is an `sk_buff` (of veth: a new one is made of what the program passes).
    Xdp,
    /// XDP in the stack, of the `sk_buff` that the driver made.
    XdpGeneric,
    /// Traffic control, for what comes in.
    Ingress,
    /// Traffic control, for what goes out.
    Egress,
}

/// What a program does with the packets it is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Deed {
    /// Nothing.
    Pass,
    /// Drops them.
    Drop,
    /// Has that device of the same namespace send them (`bpf_redirect`).
    Redirect(String),
    /// The same, with the link-layer address of their next hop (`bpf_redirect_neigh`).
    Neighbour(String),
    /// Has the other end of that veth receive them (`bpf_redirect_peer`).
    Peer(String),
}

impl Planted {
    /// `to`: only what is for that address; all else passes.
    pub(super) fn program(
        &mut self,
        namespace: &str,
        interface: &str,
        place: Place,
        deed: &Deed,
        to: Ipv4Addr,
    ) -> Result<()> {
        let object = object(place.section(), &instructions(place, &act(namespace, place, deed)?, to));
        let file = tempfile::NamedTempFile::new().context("making a file for a program")?;
        fs::write(file.path(), object).context("writing a program")?;
        let path = file.path().to_str().context("a path that is no text")?;
        let how = match place {
            Place::Xdp => "xdpdrv",
            Place::XdpGeneric => "xdpgeneric",
            Place::Ingress | Place::Egress => {
                self.run_until(namespace, "tc", &format!("qdisc add dev {interface} clsact"), "del")?;
                let direction = if place == Place::Ingress { "ingress" } else { "egress" };
                let line = format!("filter add dev {interface} {direction} bpf da obj {path} sec {}", place.section());
                return netns::inside(namespace, || run("tc", &line.split(' ').collect::<Vec<_>>(), "")).map(drop);
            }
        };
        let line = format!("link set dev {interface} {how} obj {path} sec {}", place.section());
        netns::inside(namespace, || run("ip", &line.split(' ').collect::<Vec<_>>(), ""))?;
        self.undo_by(namespace, "ip", words(&format!("link set dev {interface} {how} off")));
        Ok(())
    }

    /// Run `... add ...`, and remember the same with `undo` in its place.
    fn run_until(&mut self, namespace: &str, tool: &'static str, line: &str, undo: &str) -> Result<()> {
        netns::inside(namespace, || run(tool, &line.split(' ').collect::<Vec<_>>(), ""))?;
        self.undo_by(namespace, tool, words(&line.replacen("add", undo, 1)));
        Ok(())
    }
}

impl Place {
    fn section(self) -> &'static str {
        if self.is_xdp() { "xdp" } else { "tc" }
    }

    fn is_xdp(self) -> bool {
        matches!(self, Place::Xdp | Place::XdpGeneric)
    }

    /// XDP_PASS, or TC_ACT_OK.
    fn pass(self) -> i32 {
        if self.is_xdp() { 2 } else { 0 }
    }

    /// XDP_DROP, or TC_ACT_SHOT.
    fn drop(self) -> i32 {
        if self.is_xdp() { 1 } else { 2 }
    }

    /// Of `data` and `data_end` in the context, bytes (`struct xdp_md`, `struct __sk_buff`).
    fn data(self) -> (i16, i16) {
        if self.is_xdp() { (0, 4) } else { (76, 80) }
    }
}

/// `r0 = n`.
fn answer(n: i32) -> [u8; 8] {
    set(0, n)
}

/// `rN = n`.
fn set(register: u8, n: i32) -> [u8; 8] {
    instruction(0xb7, register, 0, 0, n)
}

/// What sets r0 for the packets that a program is for.
fn act(namespace: &str, place: Place, deed: &Deed) -> Result<Vec<[u8; 8]>> {
    // Numbers of `enum bpf_func_id`.
    const CALL: u8 = 0x85;
    const REDIRECT: i32 = 23;
    const REDIRECT_NEIGH: i32 = 152;
    const REDIRECT_PEER: i32 = 155;
    let (device, helper) = match deed {
        Deed::Pass => return Ok(vec![answer(place.pass())]),
        Deed::Drop => return Ok(vec![answer(place.drop())]),
        Deed::Redirect(device) => (device, REDIRECT),
        Deed::Neighbour(device) => (device, REDIRECT_NEIGH),
        Deed::Peer(device) => (device, REDIRECT_PEER),
    };
    ensure!(helper == REDIRECT || !place.is_xdp(), "XDP redirects only to a device as it is");
    let index = netns::inside(namespace, || {
        let links = run("ip", &["-o", "link", "show", "dev", device], "")?;
        let index = links.split(':').next().and_then(|index| index.parse::<i32>().ok());
        index.with_context(|| format!("no index in `{links}`"))
    })?;
    // Flags or nothing in all other arguments.
    Ok(vec![set(1, index), set(2, 0), set(3, 0), set(4, 0), instruction(CALL, 0, 0, 0, helper)])
}

/// For IPv4 packets to that address do as `act`, pass others.
fn instructions(place: Place, act: &[[u8; 8]], to: Ipv4Addr) -> Vec<u8> {
    let (data, data_end) = place.data();
    // Past `act` and the exit behind it.
    let over = |here: i16| i16::try_from(act.len()).unwrap_or(i16::MAX) + 1 + (8 - here);
    let mut code = vec![
        instruction(0x61, 2, 1, data, 0),                                  // r2 = data
        instruction(0x61, 3, 1, data_end, 0),                              // r3 = data_end
        instruction(0xbf, 4, 2, 0, 0),                                     // r4 = r2
        instruction(0x07, 4, 0, 0, 34),                                    // r4 += Ethernet and IPv4
        instruction(0x2d, 4, 3, over(4), 0),                               // if r4 > r3
        instruction(0x69, 5, 2, 12, 0),                                    // r5 = EtherType
        instruction(0x55, 5, 0, over(6), i32::from(0x0800u16.to_be())),    // if r5 != IPv4
        instruction(0x61, 5, 2, 30, 0),                                    // r5 = destination
        instruction(0x56, 5, 0, over(8), i32::from_ne_bytes(to.octets())), // if w5 != to
    ];
    const EXIT: u8 = 0x95;
    let exit = instruction(EXIT, 0, 0, 0, 0);
    code.extend(act);
    code.extend([exit, answer(place.pass()), exit]);
    code.concat()
}

/// `struct bpf_insn`.
fn instruction(op: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> [u8; 8] {
    let [o0, o1] = offset.to_ne_bytes();
    let [i0, i1, i2, i3] = immediate.to_ne_bytes();
    [op, destination | source << 4, o0, o1, i0, i1, i2, i3]
}

/// An ELF file (64 bits, this machine's byte order) with one function in `section`.
fn object(section: &str, code: &[u8]) -> Vec<u8> {
    const HEADER: usize = 64;
    const ENTRY: usize = 64;
    const SYMBOL: usize = 24;
    let (mut names, mut at) = (vec![0], Vec::new());
    for name in [".strtab", section, "license", ".symtab", "podpath"] {
        at.push(u32::try_from(names.len()).unwrap_or(0));
        names.extend(name.bytes().chain([0]));
    }
    let mut symbols = vec![0; SYMBOL];
    symbols.extend(at[4].to_ne_bytes());
    // A global function in section 2, and its size.
    symbols.extend([0x12, 0, 2, 0]);
    symbols.extend([0; 8]);
    symbols.extend((code.len() as u64).to_ne_bytes());
    // Type, flags, content, section it refers to, size of one entry.
    let sections: [(u32, u64, &[u8], u32, u64); 4] =
        [(3, 0, &names, 0, 0), (1, 6, code, 0, 0), (1, 3, b"Dual MIT/GPL\0", 0, 0), (2, 0, &symbols, 1, SYMBOL as u64)];
    let (mut body, mut table) = (Vec::new(), vec![0; ENTRY]);
    for (i, (kind, flags, content, link, entry)) in sections.into_iter().enumerate() {
        body.resize(body.len().next_multiple_of(8), 0);
        table.extend([at[i], kind].map(u32::to_ne_bytes).concat());
        let [offset, size] = [HEADER + body.len(), content.len()].map(|n| n as u64);
        table.extend([flags, 0, offset, size].map(u64::to_ne_bytes).concat());
        table.extend([link, u32::from(link > 0)].map(u32::to_ne_bytes).concat());
        table.extend([8, entry].map(u64::to_ne_bytes).concat());
        body.extend(content);
    }
    body.resize(body.len().next_multiple_of(8), 0);
    let order = if cfg!(target_endian = "little") { 1 } else { 2 };
    let mut file = vec![0x7f, b'E', b'L', b'F', 2, order, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    // Relocatable, for BPF.
    file.extend([1u16, 247].map(u16::to_ne_bytes).concat());
    file.extend(1u32.to_ne_bytes());
    file.extend([0, 0, (HEADER + body.len()) as u64].map(u64::to_ne_bytes).concat());
    file.extend(0u32.to_ne_bytes());
    file.extend([HEADER, 0, 0, ENTRY, sections.len() + 1, 1].map(|n| (n as u16).to_ne_bytes()).concat());
    file.extend(body);
    file.extend(table);
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_passes_what_it_is_not_for() {
        let act = [answer(1)];
        let code = instructions(Place::Xdp, &act, Ipv4Addr::new(10, 0, 0, 1));
        let code: Vec<&[u8]> = code.chunks(8).collect();
        // Each jump leads to `r0 = XDP_PASS`.
        let pass = code.len() - 2;
        assert_eq!(code[pass], answer(2));
        for here in [4, 6, 8] {
            assert_eq!(here + 1 + usize::from(code[here][2]), pass);
        }
        assert_eq!(code[8][4..], [10, 0, 0, 1]);
    }

    #[test]
    fn the_object_is_elf_with_the_code_where_its_table_says() {
        let file = object("xdp", &[7; 24]);
        let long = |at: usize| usize::try_from(u64::from_ne_bytes(file[at..at + 8].try_into().unwrap())).unwrap();
        let code = long(40) + 2 * 64;
        assert_eq!(file[long(code + 24)..][..long(code + 32)], [7; 24]);
        assert_eq!(file.len(), long(40) + 5 * 64);
    }
}
