//! kind's own CNI: what leaves the cluster is masqueraded.

use super::super::profile::Profile;
use super::{Rules, table};

const CHAIN: &str = "KIND-MASQ-AGENT";

pub(super) fn node(profile: &Profile) -> Rules {
    let comment = |text: &str| format!("-m comment --comment \"kind-masq-agent: {text}\"");
    let rules = [
        format!(
            "-A POSTROUTING -m addrtype ! --dst-type LOCAL {} -j {CHAIN}",
            comment(
                "ensure nat POSTROUTING directs all non-LOCAL destination traffic to our custom KIND-MASQ-AGENT chain"
            )
        ),
        format!("-A {CHAIN} -d {} {} -j RETURN", profile.pool, comment("local traffic is not subject to MASQUERADE")),
        format!(
            "-A {CHAIN} {} -j MASQUERADE",
            comment("outbound traffic is subject to MASQUERADE (must be last in chain)")
        ),
    ];
    Rules { iptables: table("nat", &[CHAIN], &rules), ..Rules::default() }
}
