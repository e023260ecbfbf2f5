//! Traffic control: token buckets on links, and the detour of what comes in through another link's queue.

use netlink_packet_core::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_REPLACE};

use super::error::NetError;
use super::link::Link;
use super::nft::wire::{Attributes, attribute, text};
use super::socket::{Answer, Message, Socket};

const NEW_QDISC: u16 = 36;
const DEL_QDISC: u16 = 37;
const GET_QDISC: u16 = 38;
const NEW_FILTER: u16 = 44;
const GET_FILTER: u16 = 46;

const ROOT: u32 = 0xffff_ffff;
const INGRESS: u32 = 0xffff_fff1;
const INGRESS_HANDLE: u32 = 0xffff_0000;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;

/// How long a packet may wait in a bucket's queue, in microseconds.
const LATENCY_US: u64 = 25_000;

/// A token bucket: a rate that holds on average, and how much may go at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bucket {
    /// Bytes a second; not 0.
    pub rate: u64,
    /// Bytes; not 0.
    pub burst: u32,
}

/// A token bucket as the kernel describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FoundBucket {
    rate: u64,
    /// Of 64 ns each, cut off at 32 bits.
    ticks: u32,
    limit: u32,
}

impl Bucket {
    /// Bytes that may wait: what leaves within the latency, and a burst.
    fn limit(self) -> u32 {
        let waiting = u128::from(self.rate) * u128::from(LATENCY_US) / 1_000_000 + u128::from(self.burst);
        u32::try_from(waiting).unwrap_or(u32::MAX)
    }

    /// How long a burst takes at the rate, in the kernel's ticks of 64 ns.
    fn ticks(self) -> u64 {
        let nanoseconds = u128::from(self.burst) * 1_000_000_000 / u128::from(self.rate);
        u64::try_from(nanoseconds >> 6).unwrap_or(u64::MAX)
    }

    /// Whether `found` is this bucket, but for the kernel's rounding.
    pub fn is(self, found: FoundBucket) -> bool {
        let (ticks, tolerance) = (self.ticks(), self.ticks() / 1_000_000 + 64);
        let apart = found.ticks.wrapping_sub(ticks as u32);
        let near = u64::from(apart.min(apart.wrapping_neg())) <= tolerance;
        found.rate == self.rate && found.limit == self.limit() && near
    }
}

/// The change that makes `bucket` what `link` sends through.
pub fn shape(link: &Link, bucket: Bucket) -> Message {
    // struct tc_tbf_qopt: two struct tc_ratespec of 12 bytes, limit, buffer, mtu.
    const ETHERNET: u8 = 1;
    let mut options = [0; 36];
    options[1] = ETHERNET;
    let short_rate = u32::try_from(bucket.rate).unwrap_or(u32::MAX);
    options[8..12].copy_from_slice(&short_rate.to_ne_bytes());
    options[24..28].copy_from_slice(&bucket.limit().to_ne_bytes());
    let short_ticks = u32::try_from(bucket.ticks()).unwrap_or(u32::MAX);
    options[28..32].copy_from_slice(&short_ticks.to_ne_bytes());
    let mut body = header(link.index, 0x0001_0000, ROOT, 0);
    let mut attributes = Attributes::default();
    attributes.text(TCA_KIND, "tbf").nest(TCA_OPTIONS, |inner| {
        inner.bytes(1, &options).bytes(6, &bucket.burst.to_ne_bytes());
        if bucket.rate > u64::from(u32::MAX) {
            inner.bytes(4, &bucket.rate.to_ne_bytes());
        }
    });
    body.extend(attributes.into_bytes());
    let what = format!("limiting the rate of link {}", link.name);
    Message { what, kind: NEW_QDISC, flags: NLM_F_CREATE | NLM_F_REPLACE, body, tolerated: None }
}

/// The changes that send what comes in through `link` out of `detour`, to come in again after that.
pub fn redirect(link: &Link, detour: &Link) -> [Message; 2] {
    let mut body = header(link.index, INGRESS_HANDLE, INGRESS, 0);
    let mut attributes = Attributes::default();
    attributes.text(TCA_KIND, "ingress");
    body.extend(attributes.into_bytes());
    let what = format!("catching what comes in through link {}", link.name);
    let catch = Message { what, kind: NEW_QDISC, flags: NLM_F_CREATE, body, tolerated: None };
    // Priority 1, every protocol (ETH_P_ALL).
    let info = 1 << 16 | u32::from(3u16.to_be());
    let mut body = header(link.index, 0, INGRESS_HANDLE, info);
    body.extend(everything_to(detour).into_bytes());
    let what = format!("redirecting link {} through {}", link.name, detour.name);
    [catch, Message { what, kind: NEW_FILTER, flags: NLM_F_CREATE, body, tolerated: None }]
}

/// The classifier u32 with one key that fits everything, and the action mirred.
fn everything_to(detour: &Link) -> Attributes {
    const TERMINAL: u8 = 1;
    const STOLEN: i32 = 4;
    const REDIRECT: i32 = 1;
    // struct tc_u32_sel: flags, offset shift, number of keys; then one struct tc_u32_key.
    let mut selector = [0; 32];
    (selector[0], selector[2]) = (TERMINAL, 1);
    // struct tc_mirred: index, capabilities, action, two counts; what to do; to which link.
    let mut mirred = [0; 28];
    mirred[8..12].copy_from_slice(&STOLEN.to_ne_bytes());
    mirred[20..24].copy_from_slice(&REDIRECT.to_ne_bytes());
    mirred[24..28].copy_from_slice(&detour.index.to_ne_bytes());
    let mut attributes = Attributes::default();
    attributes.text(TCA_KIND, "u32").nest(TCA_OPTIONS, |inner| {
        inner.bytes(5, &selector).nest(7, |actions| {
            actions.nest(1, |action| {
                action.text(1, "mirred").nest(2, |options| {
                    options.bytes(2, &mirred);
                });
            });
        });
    });
    attributes
}

/// The changes that take [`shape`] and [`redirect`] back.
pub fn clear(link: &Link) -> [Message; 2] {
    let remove = |what: &str, parent: u32| Message {
        what: format!("{what} of link {}", link.name),
        kind: DEL_QDISC,
        flags: 0,
        body: header(link.index, 0, parent, 0),
        tolerated: None,
    };
    [remove("removing the redirection", INGRESS), remove("removing the rate limit", ROOT)]
}

/// The token bucket that `link` sends through; `None` where there is none.
///
/// # Errors
/// [`NetError`].
pub fn bucket(socket: &mut Socket, link: &Link) -> Result<Option<FoundBucket>, NetError> {
    let what = format!("listing the queues of link {}", link.name);
    let body = header(link.index, 0, 0, 0);
    let question = Message { what, kind: GET_QDISC, flags: NLM_F_DUMP, body, tolerated: None };
    let answers = socket.ask(&question)?;
    let own = |answer: &&Answer| {
        number(&answer.body, 4) == Some(link.index) && number(&answer.body, 12) == Some(ROOT)
    };
    Ok(answers.iter().filter(own).find_map(|answer| read_bucket(answer.body.get(20..)?)))
}

fn read_bucket(attributes: &[u8]) -> Option<FoundBucket> {
    if text(attribute(attributes, TCA_KIND)?) != "tbf" {
        return None;
    }
    let options = attribute(attributes, TCA_OPTIONS)?;
    let parameters = attribute(options, 1)?;
    let long_rate = attribute(options, 4).and_then(|bytes| bytes.try_into().ok()).map(u64::from_ne_bytes);
    let short_rate = number(parameters, 8).map(u64::from)?;
    Some(FoundBucket {
        rate: long_rate.unwrap_or(short_rate),
        limit: number(parameters, 24)?,
        ticks: number(parameters, 28)?,
    })
}

/// Index of the link that what comes in through `link` is redirected to.
///
/// # Errors
/// [`NetError`].
pub fn redirected_to(socket: &mut Socket, link: &Link) -> Result<Option<u32>, NetError> {
    let what = format!("listing the filters of link {}", link.name);
    let body = header(link.index, 0, INGRESS_HANDLE, 0);
    let question = Message { what, kind: GET_FILTER, flags: NLM_F_DUMP, body, tolerated: None };
    match socket.ask(&question) {
        Ok(answers) => Ok(answers.iter().find_map(|answer| read_redirection(answer.body.get(20..)?))),
        Err(error) if error.is_missing() || error.errno() == Some(rustix::io::Errno::INVAL) => Ok(None),
        Err(error) => Err(error),
    }
}

fn read_redirection(attributes: &[u8]) -> Option<u32> {
    let actions = attribute(attribute(attributes, TCA_OPTIONS)?, 7)?;
    let action = attribute(actions, 1)?;
    let mirred = attribute(attribute(action, 2)?, 2)?;
    number(mirred, 24)
}

/// struct tcmsg.
fn header(index: u32, handle: u32, parent: u32, info: u32) -> Vec<u8> {
    let mut body = vec![0; 4];
    [index, handle, parent, info].into_iter().for_each(|part| body.extend(part.to_ne_bytes()));
    body
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_recognised_but_for_rounding() {
        let check = |bucket: Bucket, rate: u64, limit: u32, ticks: u32, expect: bool| {
            assert_eq!(bucket.is(FoundBucket { rate, ticks, limit }), expect, "{bucket:?}");
        };
        // 1 Mbit/s, 1 Mbit: a second is 15625000 ticks.
        let bucket = Bucket { rate: 125_000, burst: 125_000 };
        check(bucket, 125_000, 128_125, 15_625_000, true);
        check(bucket, 125_000, 128_125, 15_624_990, true);
        check(bucket, 125_000, 128_125, 15_000_000, false);
        check(bucket, 125_001, 128_125, 15_625_000, false);
        check(bucket, 125_000, 128_126, 15_625_000, false);
        // Longer than 32 bits of ticks: what the kernel shows is cut off.
        let long = Bucket { rate: 1000, burst: u32::MAX };
        check(long, 1000, u32::MAX, long.ticks() as u32, true);
        check(long, 1000, u32::MAX, (long.ticks() as u32).wrapping_sub(1000), true);
        check(Bucket { rate: 1 << 40, burst: 1 }, 1 << 40, u32::MAX, 0, true);
    }
}
