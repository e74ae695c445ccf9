//! Interface names that a CNI derives from a pod's name.

use sha1::{Digest, Sha1};

/// The name Calico gives the node's end of a pod's veth: `cali` and the first 11 hexadecimal digits of the SHA-1 of
/// `namespace.pod`. 15 bytes: the longest name Linux allows (`IFNAMSIZ` - 1).
#[must_use]
pub fn calico_interface_name(namespace: &str, pod: &str) -> String {
    let digest = Sha1::digest(format!("{namespace}.{pod}"));
    let hex: String = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    format!("cali{}", &hex[..11])
}

#[cfg(test)]
mod tests {
    use super::calico_interface_name;

    #[test]
    fn is_the_name_seen_on_real_nodes() {
        assert_eq!(calico_interface_name("default", "bb1"), "cali98fd8882b62");
        assert_eq!(calico_interface_name("default", "bb2").len(), 15);
    }
}
