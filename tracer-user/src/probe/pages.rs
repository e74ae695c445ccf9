//! Where the kernel keeps its pages, as the program headers of `/proc/kcore` tell. So do the variables `vmemmap_base` and
//! `page_offset_base`, but looking for them in `/proc/kallsyms` takes the kernel tens to hundreds of milliseconds.

use std::{
    fs::File,
    io::{self, Read},
};

use tracer_common::{ABSENT, Layout, Pages};

use super::btf::KernelTypes;

const KCORE: &str = "/proc/kcore";
/// More than the headers of a machine of hundreds of memory ranges take, bytes.
const MOST: u64 = 1 << 16;
/// A page of x86-64, bytes; and where its kernel's own text and its modules are mapped, above all else.
const PAGE: u64 = 4096;
const TEXT: u64 = 0xffff_ffff_8000_0000;
/// Both mappings begin at a multiple of this (`kernel_randomize_memory` in arch/x86/mm/kaslr.c).
const ALIGNED: u64 = 1 << 30;

/// Why page fragments cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Why {
    /// Its memory is laid out otherwise.
    #[error("on this processor it is not known where the kernel keeps pages")]
    Processor,
    /// An unknown kernel.
    #[error("this kernel's page fragments are not of a kind that is known")]
    Fragment,
    /// Not there, masked, or not allowed.
    #[error("{KCORE}, which tells where the kernel keeps pages: {0}")]
    Kcore(#[from] io::Error),
    /// It says something else than expected.
    #[error("{KCORE} does not tell where the kernel keeps pages")]
    Untold,
}

/// Finds the pages of the running kernel.
///
/// # Errors
/// [`Why`] they cannot be read: packets whose headers lie in page fragments are then only counted.
pub fn read(types: &KernelTypes, layout: &Layout) -> Result<Pages, Why> {
    if !cfg!(target_arch = "x86_64") {
        return Err(Why::Processor);
    }
    let stride = types.size("page").filter(|_| layout.shared_frags != ABSENT).ok_or(Why::Fragment)?;
    let mut headers = Vec::new();
    File::open(KCORE)?.take(MOST).read_to_end(&mut headers)?;
    of_kcore(&headers, u64::from(stride)).ok_or(Why::Untold)
}

/// The pages of a smaller range may be as long as something else by accident, bytes.
const TELLING: u64 = 1 << 24;

/// A range of kernel memory: a program header of type `PT_LOAD` (elf(5)).
#[derive(Clone, Copy)]
struct Range {
    virt: u64,
    /// All ones where it is no memory of its own (`read_kcore_iter` in fs/proc/kcore.c).
    phys: u64,
    len: u64,
}

/// Each range of memory is followed by that of its `struct page`s, rounded to whole pages, unless that would overlap another's
/// (`get_sparsemem_vmemmap_info` in fs/proc/kcore.c). None unless all that there are agree.
fn of_kcore(headers: &[u8], stride: u64) -> Option<Pages> {
    let ranges = ranges(headers)?;
    let (memory, other): (Vec<Range>, Vec<Range>) =
        ranges.into_iter().filter(|range| range.virt < TEXT).partition(|range| range.phys != u64::MAX);
    let mapped = same(memory.iter().map(|range| range.virt.wrapping_sub(range.phys)))?;
    let first = same(memory.iter().filter(|range| range.len >= TELLING).flat_map(|range| {
        let (from, to) = (range.phys / PAGE * stride, (range.phys + range.len) / PAGE * stride);
        let begin = from / PAGE * PAGE;
        let len = to.next_multiple_of(PAGE) - begin;
        let fits = other.iter().filter(move |pages| pages.len == len);
        fits.map(move |pages| pages.virt.wrapping_sub(begin)).filter(|first| first % ALIGNED == 0)
    }))?;
    (mapped % ALIGNED == 0).then_some(Pages { first, stride, memory: mapped, size: PAGE })
}

/// The value that all of them have.
fn same(mut values: impl Iterator<Item = u64>) -> Option<u64> {
    let first = values.next()?;
    values.all(|value| value == first).then_some(first)
}

/// The ranges that the headers of a 64-bit ELF file name, in the machine's byte order.
fn ranges(headers: &[u8]) -> Option<Vec<Range>> {
    const PT_LOAD: u32 = 1;
    let word = |at: usize| Some(u64::from_ne_bytes(headers.get(at..at + 8)?.try_into().ok()?));
    let half = |at: usize| Some(u16::from_ne_bytes(headers.get(at..at + 2)?.try_into().ok()?));
    if headers.get(..5)? != b"\x7fELF\x02" {
        return None;
    }
    let (table, size, count) = (usize::try_from(word(32)?).ok()?, usize::from(half(54)?), usize::from(half(56)?));
    let mut ranges = Vec::new();
    for at in (0..count).map(|index| table + index * size) {
        if word(at)? as u32 == PT_LOAD {
            ranges.push(Range { virt: word(at + 16)?, phys: word(at + 24)?, len: word(at + 40)? });
        }
    }
    Some(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a VM's Linux 7.2 says, with five levels of page tables: text, vmalloc, modules, and twice memory and its pages.
    const RANGES: [[u64; 3]; 7] = [
        [0xffff_ffff_97e0_0000, 0x34c0_0000, 0x323_0000],
        [0xff77_cc38_8000_0000, u64::MAX, 0x31_ffff_ffff_ffff],
        [0xffff_ffff_c000_0000, u64::MAX, 0x3f00_0000],
        [0xff24_c7c9_c000_1000, 0x1000, 0x9e000],
        [0xffe2_6d59_4000_0000, u64::MAX, 0x3000],
        [0xff24_c7c9_c010_0000, 0x10_0000, 0x3fed_7000],
        [0xffe2_6d59_4000_4000, u64::MAX, 0xff_c000],
    ];

    fn kcore(ranges: &[[u64; 3]]) -> Vec<u8> {
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(64, 0);
        file[32..40].copy_from_slice(&64u64.to_ne_bytes());
        file[54..56].copy_from_slice(&56u16.to_ne_bytes());
        file[56..58].copy_from_slice(&(ranges.len() as u16 + 1).to_ne_bytes());
        // The notes come first.
        let note = [4, 0x200, 0, 0, 0x2c9c, 0, 0];
        let loads =
            ranges.iter().map(|[virt, phys, len]| [7 << 32 | 1, *virt + 0x4000, *virt, *phys, *len, *len, PAGE]);
        for header in [note].into_iter().chain(loads) {
            file.extend(header.iter().flat_map(|word: &u64| word.to_ne_bytes()));
        }
        file
    }

    #[test]
    fn memory_and_its_pages_are_told_from_all_else() {
        let found = of_kcore(&kcore(&RANGES), 64).unwrap();
        let (first, memory) = (0xffe2_6d59_4000_0000, 0xff24_c7c9_c000_0000);
        assert_eq!(found, Pages { first, stride: 64, memory, size: 4096 });
    }

    #[test]
    fn nothing_is_concluded_from_what_does_not_agree() {
        let mut moved = RANGES;
        moved[6][0] += 64 * ALIGNED;
        assert_eq!(of_kcore(&kcore(&moved), 64), None);
        let mut moved = RANGES;
        moved[3][0] += ALIGNED;
        assert_eq!(of_kcore(&kcore(&moved), 64), None);
        // Without the pages, with pages of another size, cut off, or no such file.
        assert_eq!(of_kcore(&kcore(&RANGES[..4]), 64), None);
        assert_eq!(of_kcore(&kcore(&RANGES), 56), None);
        assert_eq!(of_kcore(&kcore(&RANGES)[..200], 64), None);
        assert_eq!(of_kcore(b"", 64), None);
    }
}
