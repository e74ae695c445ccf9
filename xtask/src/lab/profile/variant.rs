//! A profile that is another one with a difference: `extends = "calico-bgp"`.

use anyhow::{Context, Result, ensure};
use toml::{Table, Value};

/// The word that names the other profile.
const EXTENDS: &str = "extends";

/// A profile as a table; a variant is merged into what it extends.
pub(super) fn table(name: &str) -> Result<Table> {
    let parse = |name: &str| -> Result<Table> {
        super::text(name)?.parse().with_context(|| format!("scenarios/labs/{name}.toml"))
    };
    let mut variant = parse(name)?;
    let Some(base) = variant.remove(EXTENDS) else { return Ok(variant) };
    let base = base.as_str().with_context(|| format!("scenarios/labs/{name}.toml: `{EXTENDS}` is a profile's name"))?;
    let mut table = parse(base)?;
    ensure!(!table.contains_key(EXTENDS), "scenarios/labs/{name}.toml: it extends {base}, which extends another");
    merge(&mut table, variant);
    Ok(table)
}

/// Tables are merged, arrays of tables go on where the other ends, everything else is replaced.
fn merge(base: &mut Table, variant: Table) {
    for (key, value) in variant {
        match (base.get_mut(&key), value) {
            (Some(Value::Table(base)), Value::Table(variant)) => merge(base, variant),
            (Some(Value::Array(base)), Value::Array(variant)) if variant.iter().all(Value::is_table) => {
                base.extend(variant);
            }
            (_, value) => drop(base.insert(key, value)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variant_says_what_differs() {
        let mut base: Table = "a = 1\nb = 2\nlist = [1]\n[t]\nx = 1\ny = 2\n[[node]]\nname = 'one'\n".parse().unwrap();
        let variant = "b = 3\nlist = [2]\n[t]\ny = 4\n[[node]]\nname = 'two'\n".parse().unwrap();
        merge(&mut base, variant);
        let expected = "a = 1\nb = 3\nlist = [2]\n[t]\nx = 1\ny = 4\n[[node]]\nname = 'one'\n[[node]]\nname = 'two'\n";
        assert_eq!(base, expected.parse::<Table>().unwrap());
    }
}
