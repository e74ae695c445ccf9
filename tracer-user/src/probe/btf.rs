//! Questions to the running kernel's BTF.

use std::fs;

use btf_rs::{Btf, BtfType, Struct, Type};

use super::Error;

/// Where the kernel offers its own type information.
const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// The running kernel's types.
pub struct KernelTypes {
    btf: Btf,
}

/// A field of a kernel structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// From the beginning of the structure, bits.
    pub bit_offset: u32,
    type_id: u32,
}

impl Field {
    /// From the beginning of the structure, bytes, rounded down for a bit field.
    pub fn offset(self) -> u32 {
        self.bit_offset / 8
    }
}

impl KernelTypes {
    /// Reads the BTF of the running kernel, without parsing what is not asked for.
    pub fn open() -> Result<Self, Error> {
        let btf = Btf::from_file_with_backend(VMLINUX, btf_rs::Backend::Mmap)
            // Before 6.16 it cannot be mapped. Read at once, for each of the parser's seeks would read a block anew.
            .or_else(|_| Btf::from_bytes(&fs::read(VMLINUX)?))
            .map_err(|source| Error::NoBtf { path: VMLINUX, source })?;
        Ok(Self { btf })
    }

    /// These types and those of a module. None: the module is not loaded, or built in, or its types are not told (before 5.11).
    pub fn with_module(&self, module: &str) -> Option<Self> {
        let bytes = fs::read(format!("/sys/kernel/btf/{module}")).ok()?;
        Btf::from_split_bytes(&bytes, &self.btf).ok().map(|btf| Self { btf })
    }

    /// A field of a structure, found by name through anonymous structures and unions; `path` may go on into
    /// embedded structures: `nd_net.net`. None: this kernel has no such structure or field.
    pub fn field(&self, structure: &str, path: &str) -> Option<Field> {
        let mut current = self.structure(structure)?;
        let mut bit_offset = 0;
        let mut names = path.split('.').peekable();
        while let Some(name) = names.next() {
            let field = self.member(&current, name)?;
            bit_offset += field.bit_offset;
            if names.peek().is_none() {
                return Some(Field { bit_offset, ..field });
            }
            current = match self.stripped(field.type_id)? {
                Type::Struct(inner) | Type::Union(inner) => inner,
                _ => return None,
            };
        }
        None
    }

    /// The BTF id of a function.
    pub fn function(&self, name: &str) -> Option<u32> {
        self.id(name, |found| matches!(found, Type::Func(_)))
    }

    /// The BTF id of a structure.
    pub fn structure_id(&self, name: &str) -> Option<u32> {
        self.id(name, |found| matches!(found, Type::Struct(_)))
    }

    fn id(&self, name: &str, is: impl Fn(&Type) -> bool) -> Option<u32> {
        let ids = self.btf.resolve_ids_by_name(name).ok()?;
        ids.into_iter().find(|id| self.btf.resolve_type_by_id(*id).is_ok_and(|found| is(&found)))
    }

    /// Size of a structure, bytes.
    pub fn size(&self, structure: &str) -> Option<u32> {
        self.structure(structure).map(|s| s.size() as u32)
    }

    /// The position among the arguments of tracepoint `name` (0 is the first after the tracepoint's own data) of the
    /// one whose type is `wanted`: `struct sk_buff *`, `enum skb_drop_reason`, `void *`.
    pub fn tracepoint_argument(&self, name: &str, wanted: &str) -> Option<u32> {
        let prototype = self.tracepoint(name)?;
        // The first parameter is the `void *__data` that every tracepoint has, and that its programs do not see.
        prototype
            .parameters
            .iter()
            .skip(1)
            .position(|parameter| parameter.get_type_id().and_then(|id| self.spelling(id)).as_deref() == Some(wanted))
            .map(|position| position as u32)
    }

    /// Does this kernel have the tracepoint?
    pub fn has_tracepoint(&self, name: &str) -> bool {
        self.tracepoint(name).is_some()
    }

    /// Names of an enumeration's values.
    pub fn enumeration(&self, name: &str) -> Vec<(u32, String)> {
        let types = self.btf.resolve_types_by_name(name).unwrap_or_default();
        types
            .into_iter()
            .find_map(|t| match t {
                Type::Enum(e) => Some(e),
                _ => None,
            })
            .map(|e| e.members.iter().filter_map(|m| Some((m.val(), self.btf.resolve_name(m).ok()?))).collect())
            .unwrap_or_default()
    }

    fn tracepoint(&self, name: &str) -> Option<btf_rs::FuncProto> {
        let types = self.btf.resolve_types_by_name(&format!("btf_trace_{name}")).ok()?;
        let typedef = types.into_iter().find_map(|t| match t {
            Type::Typedef(typedef) => Some(typedef),
            _ => None,
        })?;
        let Type::Ptr(pointer) = self.btf.resolve_type_by_id(typedef.get_type_id()?).ok()? else { return None };
        match self.btf.resolve_type_by_id(pointer.get_type_id()?).ok()? {
            Type::FuncProto(prototype) => Some(prototype),
            _ => None,
        }
    }

    fn structure(&self, name: &str) -> Option<Struct> {
        self.btf.resolve_types_by_name(name).ok()?.into_iter().find_map(|t| match t {
            Type::Struct(s) => Some(s),
            _ => None,
        })
    }

    fn member(&self, structure: &Struct, name: &str) -> Option<Field> {
        for member in &structure.members {
            let type_id = member.get_type_id()?;
            let bit_offset = member.bit_offset();
            let member_name = self.btf.resolve_name(member).unwrap_or_default();
            if member_name == name {
                return Some(Field { bit_offset, type_id });
            }
            if !member_name.is_empty() {
                continue;
            }
            if let Some(Type::Struct(inner) | Type::Union(inner)) = self.stripped(type_id)
                && let Some(field) = self.member(&inner, name)
            {
                return Some(Field { bit_offset: bit_offset + field.bit_offset, ..field });
            }
        }
        None
    }

    /// The type behind typedefs and qualifiers.
    fn stripped(&self, mut id: u32) -> Option<Type> {
        loop {
            let resolved = self.btf.resolve_type_by_id(id).ok()?;
            id = match &resolved {
                Type::Typedef(t) => t.get_type_id()?,
                Type::Const(t) | Type::Volatile(t) | Type::Restrict(t) => t.get_type_id()?,
                Type::TypeTag(t) => t.get_type_id()?,
                _ => return Some(resolved),
            };
        }
    }

    /// A type as C spells it; only the kinds that arguments of our tracepoints have.
    fn spelling(&self, id: u32) -> Option<String> {
        match self.stripped(id)? {
            Type::Ptr(pointer) => {
                let target = pointer.get_type_id().unwrap_or(0);
                if target == 0 {
                    return Some("void *".into());
                }
                Some(format!("{} *", self.spelling(target)?))
            }
            Type::Struct(s) => Some(format!("struct {}", self.btf.resolve_name(&s).ok()?)),
            Type::Enum(e) => Some(format!("enum {}", self.btf.resolve_name(&e).ok()?)),
            Type::Void => Some("void".into()),
            Type::Int(i) => self.btf.resolve_name(&i).ok(),
            _ => None,
        }
    }
}
