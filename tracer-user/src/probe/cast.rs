//! What the programs' calls of [`CAST`] become. With the kernel's `bpf_rdonly_cast` they load from packets and conntrack entries
//! directly, which costs them less than asking `bpf_probe_read_kernel` to copy. The loader of the object, aya, links no
//! functions of the kernel's.

use tracer_common::CAST;

/// `BPF_JMP | BPF_CALL` and `BPF_ALU64 | BPF_MOV | BPF_K`.
const CALL: u8 = 0x85;
const MOVE: u8 = 0xb7;
/// `BPF_PSEUDO_KFUNC_CALL`, as source register: the number is the BTF id of a function of the kernel's.
const KERNEL_FUNCTION: u8 = if cfg!(target_endian = "little") { 2 << 4 } else { 2 };

/// The object, in which each call of [`CAST`] is one of the function with the BTF id `function`, or without it the instruction `r0 = 0`. The verifier removes
/// that again, because the programs do not come there.
pub(super) fn linked(object: &[u8], function: Option<u32>) -> Vec<u8> {
    let wanted = instruction(CALL, 0, CAST);
    let instead = match function {
        Some(id) => instruction(CALL, KERNEL_FUNCTION, id),
        None => instruction(MOVE, 0, 0),
    };
    // Aligned as ELF's structures want it: every allocator aligns what is so large to 16 bytes.
    let mut linked = object.to_vec();
    // Sections of instructions are aligned to an instruction's 8 bytes.
    for found in linked.chunks_exact_mut(8).filter(|chunk| **chunk == wanted) {
        found.copy_from_slice(&instead);
    }
    linked
}

/// `struct bpf_insn` (include/uapi/linux/bpf.h).
fn instruction(code: u8, registers: u8, immediate: u32) -> [u8; 8] {
    let [a, b, c, d] = immediate.to_ne_bytes();
    [code, registers, 0, 0, a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::OBJECT;

    fn calls(object: &[u8], wanted: [u8; 8]) -> usize {
        object.chunks_exact(8).filter(|chunk| **chunk == wanted).count()
    }

    #[test]
    fn every_call_becomes_one_of_the_kernels_function_or_none() {
        let before = calls(OBJECT, instruction(CALL, 0, CAST));
        assert!(before > 3, "the programs call it {before} times");
        // Wherever it stands: none is overlooked for lying at an odd place.
        let anywhere = OBJECT.windows(4).filter(|window| **window == CAST.to_ne_bytes()).count();
        assert_eq!(anywhere, before);
        let (with, without) = (linked(OBJECT, Some(4711)), linked(OBJECT, None));
        assert_eq!(calls(&with, instruction(CALL, KERNEL_FUNCTION, 4711)), before);
        for object in [with, without] {
            assert_eq!((calls(&object, instruction(CALL, 0, CAST)), object.len()), (0, OBJECT.len()));
        }
    }
}
