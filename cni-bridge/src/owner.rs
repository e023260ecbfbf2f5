//! Whose a thing is: the tag on every link, rule element and rule that a plugin makes.
//!
//! The tag is `network/container/interface`; none of the three can contain a slash.

use std::fmt;

use proto::cni::{Attachment, CniError, ErrorCode, NetworkName};

/// The longest tag in bytes: what an nf_tables comment and a link's alias hold.
const MAX_TAG: usize = 250;

/// The owner of what an ADD makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    tag: String,
}

impl Owner {
    /// The owner for an attachment to a network.
    ///
    /// # Errors
    /// [`ErrorCode::INVALID_ENVIRONMENT`] when the names are too long together.
    pub fn new(network: &NetworkName, attachment: &Attachment) -> Result<Self, CniError> {
        let tag = format!("{network}/{}/{}", attachment.container_id, attachment.ifname);
        if tag.len() > MAX_TAG {
            let msg =
                format!("CNI_CONTAINERID: longer than {MAX_TAG} bytes with network and interface names");
            return Err(CniError::new(ErrorCode::INVALID_ENVIRONMENT, msg));
        }
        Ok(Self { tag })
    }

    /// The tag.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// Network, container and interface.
    pub fn parts(&self) -> (&str, &str, &str) {
        let mut parts = self.tag.split('/');
        let mut next = || parts.next().unwrap_or_default();
        (next(), next(), next())
    }

    /// The owner that a tag names.
    pub fn of_tag(tag: &str) -> Option<Self> {
        let parts: Vec<&str> = tag.split('/').collect();
        let whole = parts.len() == 3 && parts.iter().all(|part| !part.is_empty());
        whole.then(|| Self { tag: tag.to_owned() })
    }

    /// Whether a tag is that of the same container at another network or interface.
    pub fn is_sibling(&self, tag: &str) -> bool {
        tag != self.tag && Self::of_tag(tag).is_some_and(|other| other.parts().1 == self.parts().1)
    }

    /// The interface's name.
    pub fn ifname(&self) -> &str {
        self.parts().2
    }

    /// A number that is the same for the same owner, never 0, and different for others.
    pub fn number(&self) -> u64 {
        hash(&self.tag).max(1)
    }

    /// The name of the host's end of the attachment's veth pair: found again without any record of it.
    pub fn host_link(&self) -> String {
        hashed_name("veth", &self.tag)
    }

    /// The name that a link has in the attachment's namespace until it gets its own.
    pub fn draft_link(&self) -> String {
        hashed_name("temp", &self.tag)
    }

    /// The group of the host's end between its making and its tagging, the same for a whole network: an ADD that
    /// was killed in between can be told by it.
    pub fn draft_group(network: &str) -> u32 {
        // Small numbers are what administrators use.
        (hash(network) >> 33) as u32 | 0x4000_0000
    }
}

/// A link's name that is the same for the same `text`, and different for others: `prefix`, of 4 bytes, and 11 digits.
pub fn hashed_name(prefix: &str, text: &str) -> String {
    format!("{prefix}{:011x}", hash(text) >> 20)
}

fn hash(text: &str) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let hash = text.bytes().fold(OFFSET, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME));
    // The last bytes reach only the low bits: fold the high half over them.
    (hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.tag)
    }
}

/// Whether `tag` belongs to `network` and to none of the `valid` attachments.
pub fn is_stale(tag: &str, network: &NetworkName, valid: &[Attachment]) -> bool {
    let mut parts = tag.split('/');
    let (Some(found), Some(container), Some(ifname), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    let is = |attachment: &Attachment| {
        attachment.container_id.as_str() == container && attachment.ifname.as_str() == ifname
    };
    found == network.as_str() && !valid.iter().any(is)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment(container: &str, ifname: &str) -> Attachment {
        Attachment { container_id: container.parse().unwrap(), ifname: ifname.parse().unwrap() }
    }

    #[test]
    fn names_are_stable_and_fit() {
        let network = "n".parse().unwrap();
        let owner = Owner::new(&network, &attachment("c", "eth0")).unwrap();
        assert_eq!(owner.tag(), "n/c/eth0");
        assert_eq!(owner.parts(), ("n", "c", "eth0"));
        assert_eq!(owner.host_link(), Owner::new(&network, &attachment("c", "eth0")).unwrap().host_link());
        assert_ne!(owner.host_link(), Owner::new(&network, &attachment("c", "eth1")).unwrap().host_link());
        assert_eq!(owner.host_link().len(), 15);
        let is_sibling = ["m/c/eth1", "n/c/eth0", "n/d/eth0", "n/c", ""].map(|tag| owner.is_sibling(tag));
        assert_eq!(is_sibling, [true, false, false, false, false]);
        let long = "n".repeat(100).parse().unwrap();
        let error = Owner::new(&long, &attachment(&"c".repeat(150), "eth0")).unwrap_err();
        assert_eq!(error.code, ErrorCode::INVALID_ENVIRONMENT);
    }

    #[test]
    fn only_the_own_network_goes_stale() {
        let valid = [attachment("c1", "eth0")];
        let check = |tag: &str, expect: bool| {
            assert_eq!(is_stale(tag, &"n".parse().unwrap(), &valid), expect, "{tag}")
        };
        check("n/c1/eth0", false);
        check("n/c1/eth1", true);
        check("n/c2/eth0", true);
        check("m/c2/eth0", false);
        check("", false);
        check("someone else's comment", false);
        check("n/a/b/c", false);
    }
}
