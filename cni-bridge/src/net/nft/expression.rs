//! Expressions: the steps of a rule.
//!
//! Steps hand values on in 4-byte registers, counted here from 0. A step that finds nothing ends the rule.

use super::wire::Attributes;

/// One step of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expression {
    /// Loads a property of the packet.
    Meta(Meta, u8),
    /// Loads a part of a header.
    Payload(HeaderField, u8),
    /// Loads the connection's status bits.
    ConntrackStatus(u8),
    /// Loads the type of route that the destination has (2 = local).
    DestinationType(u8),
    /// Masks a register.
    And {
        /// Register.
        register: u8,
        /// Mask, in the order of the bytes.
        mask: Vec<u8>,
    },
    /// Sets bits of a register that holds 4 bytes in host order.
    SetBits {
        /// Register.
        register: u8,
        /// The bits.
        bits: u32,
    },
    /// Marks the packet with what the register holds.
    SetMark(u8),
    /// Goes on only if the register equals the value.
    Equal(u8, Vec<u8>),
    /// Goes on only if the register differs from the value.
    Differs(u8, Vec<u8>),
    /// Looks the key that starts in the register up in a map, and loads what it finds.
    Load {
        /// The map.
        map: String,
        /// First register of the key.
        key: u8,
        /// First register of what is found.
        into: u8,
    },
    /// Looks the key that starts in the register up in a verdict map, and obeys.
    Decide {
        /// The map.
        map: String,
        /// First register of the key.
        key: u8,
    },
    /// Ends the rule with a verdict.
    Verdict(Verdict),
    /// Rewrites the destination to what the registers hold.
    Dnat {
        /// NFPROTO_IPV4 or NFPROTO_IPV6.
        family: u8,
        /// First register of the address.
        address: u8,
        /// Register of the port.
        port: u8,
    },
    /// Rewrites the source to an address of the link that the packet leaves through.
    Masquerade,
    /// Counts packets and bytes.
    Count,
    /// Goes on only for packets of known connections and what belongs to them, in the form that `iptables` writes and
    /// can show: `-m conntrack --ctstate RELATED,ESTABLISHED`.
    KnownConnections,
}

/// A property of the packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meta {
    /// Protocol of the frame, 2 bytes in network order: 0x0800 IPv4, 0x86dd IPv6.
    EtherType = 1,
    /// Mark, 4 bytes in host order.
    Mark = 3,
    /// Index of the link it came in through, 4 bytes in host order.
    InputLink = 4,
    /// Name of the link it leaves through, 16 bytes.
    OutputName = 7,
    /// Name of the link it came in through, padded to 16 bytes.
    InputName = 6,
    /// Address family, 1 byte.
    Family = 15,
    /// Transport protocol, 1 byte.
    Protocol = 16,
}

/// A part of a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeaderField {
    /// IPv4 source.
    Source4,
    /// IPv4 destination.
    Destination4,
    /// IPv6 source.
    Source6,
    /// IPv6 destination.
    Destination6,
    /// Destination port of TCP, UDP and SCTP.
    DestinationPort,
}

/// What becomes of the packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is discarded.
    Drop,
    /// This hook is done with it.
    Accept,
    /// The chain that jumped here goes on.
    Return,
    /// Another chain is tried first.
    Jump(String),
}

impl HeaderField {
    /// Header (1 network, 2 transport), offset and length in bytes.
    fn position(self) -> (u32, u32, u32) {
        match self {
            Self::Source4 => (1, 12, 4),
            Self::Destination4 => (1, 16, 4),
            Self::Source6 => (1, 8, 16),
            Self::Destination6 => (1, 24, 16),
            Self::DestinationPort => (2, 2, 2),
        }
    }
}

impl Verdict {
    /// Fills a verdict's attributes.
    pub(super) fn encode(&self, out: &mut Attributes) {
        let code: i32 = match self {
            Self::Drop => 0,
            Self::Accept => 1,
            Self::Jump(_) => JUMP,
            Self::Return => -5,
        };
        out.number(1, code as u32);
        if let Self::Jump(chain) = self {
            out.text(2, chain);
        }
    }
}

impl Expression {
    /// Fills one element of a rule's list of expressions.
    pub(super) fn encode(&self, out: &mut Attributes) {
        out.text(1, self.name());
        out.nest(2, |data| self.encode_data(data));
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Meta(..) | Self::SetMark(_) => "meta",
            Self::Payload(..) => "payload",
            Self::ConntrackStatus(_) => "ct",
            Self::DestinationType(_) => "fib",
            Self::And { .. } | Self::SetBits { .. } => "bitwise",
            Self::Equal(..) | Self::Differs(..) => "cmp",
            Self::Load { .. } | Self::Decide { .. } => "lookup",
            Self::Verdict(_) => "immediate",
            Self::Dnat { .. } => "nat",
            Self::Masquerade => "masq",
            Self::Count => "counter",
            Self::KnownConnections => "match",
        }
    }

    fn encode_data(&self, out: &mut Attributes) {
        match self {
            Self::Meta(key, into) => {
                out.number(1, register(*into)).number(2, *key as u32);
            }
            Self::Payload(field, into) => {
                let (base, offset, length) = field.position();
                out.number(1, register(*into)).number(2, base).number(3, offset).number(4, length);
            }
            Self::ConntrackStatus(into) => {
                const STATUS: u32 = 2;
                out.number(1, register(*into)).number(2, STATUS);
            }
            Self::DestinationType(into) => {
                const ADDRESS_TYPE: u32 = 3;
                const OF_DESTINATION: u32 = 2;
                out.number(1, register(*into)).number(2, ADDRESS_TYPE).number(3, OF_DESTINATION);
            }
            Self::And { register: at, mask } => {
                let zero = vec![0; mask.len()];
                out.number(1, register(*at)).number(2, register(*at)).number(3, mask.len() as u32);
                out.nest(4, |data| value(data, mask)).nest(5, |data| value(data, &zero));
            }
            Self::SetBits { register: at, bits } => {
                out.number(1, register(*at)).number(2, register(*at)).number(3, 4);
                out.nest(4, |data| value(data, &(!bits).to_ne_bytes()));
                out.nest(5, |data| value(data, &bits.to_ne_bytes()));
            }
            Self::SetMark(from) => {
                out.number(2, Meta::Mark as u32).number(3, register(*from));
            }
            Self::Equal(at, bytes) => compare(out, *at, 0, bytes),
            Self::Differs(at, bytes) => compare(out, *at, 1, bytes),
            Self::Load { map, key, into } => {
                out.text(1, map).number(2, register(*key)).number(3, register(*into));
            }
            Self::Decide { map, key } => {
                out.text(1, map).number(2, register(*key)).number(3, VERDICT_REGISTER);
            }
            Self::Verdict(verdict) => {
                out.number(1, VERDICT_REGISTER);
                out.nest(2, |data| {
                    data.nest(2, |inner| verdict.encode(inner));
                });
            }
            Self::Dnat { family, address, port } => {
                const DESTINATION: u32 = 1;
                out.number(1, DESTINATION).number(2, u32::from(*family));
                out.number(3, register(*address)).number(5, register(*port));
            }
            Self::Masquerade => {}
            Self::Count => {
                out.bytes(1, &[0; 8]).bytes(2, &[0; 8]);
            }
            Self::KnownConnections => {
                out.text(1, "conntrack").number(2, 3).bytes(3, &known_connections());
            }
        }
    }
}

/// `struct xt_conntrack_mtinfo3`: flags at 146 (1 = compare the state), states at 150 (2 established, 4 related).
fn known_connections() -> [u8; 168] {
    let mut options = [0; 168];
    options[146..148].copy_from_slice(&1u16.to_ne_bytes());
    options[150..152].copy_from_slice(&6u16.to_ne_bytes());
    options
}

/// The kernel's number for a jump.
pub(super) const JUMP: i32 = -3;
const VERDICT_REGISTER: u32 = 0;

/// The kernel counts its 4-byte registers from 8.
fn register(number: u8) -> u32 {
    8 + u32::from(number)
}

fn value(out: &mut Attributes, bytes: &[u8]) {
    out.bytes(1, bytes);
}

fn compare(out: &mut Attributes, at: u8, operator: u32, bytes: &[u8]) {
    out.number(1, register(at)).number(2, operator).nest(3, |data| value(data, bytes));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Golden bytes: text `name`, then the nested data.
    #[test]
    fn expressions_encode_to_these_bytes() {
        let check = |expression: Expression, expect: &str| {
            let mut out = Attributes::default();
            expression.encode(&mut out);
            let hex: Vec<String> = out.into_bytes().chunks(4).map(hex).collect();
            assert_eq!(hex.join(" "), expect, "{expression:?}");
        };
        check(
            Expression::Meta(Meta::Protocol, 0),
            "09000100 6d657461 00000000 14000280 08000100 00000008 08000200 00000010",
        );
        check(
            Expression::Payload(HeaderField::DestinationPort, 1),
            "0c000100 7061796c 6f616400 24000280 08000100 00000009 08000200 00000002 08000300 00000002 08000400 00000002",
        );
        check(
            Expression::Equal(0, vec![2]),
            "08000100 636d7000 20000280 08000100 00000008 08000200 00000000 0c000380 05000100 02000000",
        );
        check(
            Expression::Decide { map: "pods4".into(), key: 0 },
            "0b000100 6c6f6f6b 75700000 20000280 0a000100 706f6473 34000000 08000200 00000008 08000300 00000000",
        );
        check(
            Expression::Verdict(Verdict::Jump("a".into())),
            "0e000100 696d6d65 64696174 65000000 24000280 08000100 00000000 18000280 14000280 08000100 fffffffd 06000200 61000000",
        );
        check(
            Expression::Dnat { family: 2, address: 0, port: 1 },
            "08000100 6e617400 24000280 08000100 00000001 08000200 00000002 08000300 00000008 08000500 00000009",
        );
        check(
            Expression::SetBits { register: 0, bits: 0x2000 },
            "0c000100 62697477 69736500 34000280 08000100 00000008 08000200 00000008 08000300 00000004 0c000480 08000100 ffdfffff 0c000580 08000100 00200000",
        );
        check(
            Expression::SetMark(1),
            "09000100 6d657461 00000000 14000280 08000200 00000003 08000300 00000009",
        );
        check(Expression::Masquerade, "09000100 6d617371 00000000 04000280");
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}
