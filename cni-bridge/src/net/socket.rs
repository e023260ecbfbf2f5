//! A small synchronous netlink socket: requests in, acknowledgements and answers out.
//!
//! The kernel handles a request while it is being sent, so an answer is always there when it is read; the receive
//! timeout only guards against surprises. A socket stays in the network namespace that it was opened in.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR,
    NLMSG_NOOP, NetlinkSerializable, NlasIterator, Parseable,
};
use netlink_packet_route::RouteNetlinkMessage;
use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use rustix::net::sockopt::{
    Timeout, set_socket_recv_buffer_size_force, set_socket_send_buffer_size_force, set_socket_timeout,
};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
};

use super::error::{NetError, Refusal};

/// Large enough for any datagram that the kernel makes of a dump.
const BUFFER: usize = 64 << 10;
const HEADER: usize = 16;
/// So many answers of one message each fit the kernel's default buffer.
const AT_ONCE: usize = 64;
/// Larger requests than this, in bytes, may not fit the kernel's default buffers.
const USUAL_REQUEST: usize = 32 << 10;

/// A netlink socket.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

/// One request to the kernel.
#[derive(Debug, Clone)]
pub struct Message {
    /// What it asks for, for errors: "adding 10.0.0.1/8 to eth0".
    pub what: String,
    /// Message type.
    pub kind: u16,
    /// Flags beside NLM_F_REQUEST.
    pub flags: u16,
    /// What follows the header.
    pub body: Vec<u8>,
    /// A refusal that counts as success.
    pub tolerated: Option<Errno>,
}

/// One message of an answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Message type.
    pub kind: u16,
    /// What follows the header.
    pub body: Vec<u8>,
}

impl Message {
    /// A routing request; `flags` beside NLM_F_REQUEST.
    pub fn route(what: impl Into<String>, flags: u16, message: &RouteNetlinkMessage) -> Self {
        let mut body = vec![0; message.buffer_len()];
        message.serialize(&mut body);
        Self { what: what.into(), kind: message.message_type(), flags, body, tolerated: None }
    }

    /// The same request, content when what it would make is there already.
    pub fn or_exists(self) -> Self {
        Self { tolerated: Some(Errno::EXIST), ..self }
    }

    /// Appends the message with its header to `out`.
    fn emit(&self, out: &mut Vec<u8>, sequence: u32) {
        let length = (HEADER + self.body.len()) as u32;
        out.extend_from_slice(&length.to_ne_bytes());
        out.extend_from_slice(&self.kind.to_ne_bytes());
        out.extend_from_slice(&(self.flags | NLM_F_REQUEST).to_ne_bytes());
        out.extend_from_slice(&sequence.to_ne_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.body);
        out.resize(out.len().next_multiple_of(4), 0);
    }
}

impl Socket {
    /// A routing socket (links, addresses, routes) in the calling thread's network namespace.
    ///
    /// # Errors
    /// [`NetError::Socket`].
    pub fn route() -> Result<Self, NetError> {
        Self::open(None, "opening a routing socket")
    }

    /// A netfilter socket (nf_tables, connection tracking) in the calling thread's network namespace.
    ///
    /// # Errors
    /// [`NetError::Socket`].
    pub fn netfilter() -> Result<Self, NetError> {
        Self::open(Some(netlink::NETFILTER), "opening a netfilter socket")
    }

    fn open(protocol: Option<rustix::net::Protocol>, what: &str) -> Result<Self, NetError> {
        let failed = |errno: Errno| socket_error(what, errno);
        let fd = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)
            .map_err(failed)?;
        set_socket_timeout(&fd, Timeout::Recv, Some(Duration::from_secs(10))).map_err(failed)?;
        for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK, libc::NETLINK_GET_STRICT_CHK] {
            enable(&fd, option);
        }
        Ok(Self { fd, sequence: 0, buffer: Vec::with_capacity(BUFFER) })
    }

    /// Applies changes in order, sent at once; all are tried, the first refusal is returned.
    ///
    /// # Errors
    /// [`NetError::Refused`] with the position of the refused one; [`NetError::Socket`].
    pub fn apply(&mut self, changes: &[Message]) -> Result<(), NetError> {
        let Some(last) = changes.len().checked_sub(1) else { return Ok(()) };
        let acknowledged = |change: &Message| Message { flags: change.flags | NLM_F_ACK, ..change.clone() };
        let messages: Vec<Message> = changes.iter().map(acknowledged).collect();
        self.exchange(&messages, &|position, _| position == last)
    }

    /// Applies an nf_tables batch: `messages` begin and end with the batch's brackets, and only the one at
    /// `acknowledged` asks for an acknowledgement. A refusal of the opening bracket refuses the batch.
    ///
    /// # Errors
    /// [`NetError::Refused`] with the first refused position; [`NetError::Socket`].
    pub fn transact(&mut self, messages: &[Message], acknowledged: usize) -> Result<(), NetError> {
        self.exchange(messages, &|position, refused| position == acknowledged || (position == 0 && refused))
    }

    /// Sends `messages` and reads acknowledgements until `over` says of one that it is the last.
    fn exchange(&mut self, messages: &[Message], over: &dyn Fn(usize, bool) -> bool) -> Result<(), NetError> {
        let first = self.send(messages)?;
        let mut first_refused = None;
        loop {
            for (header, body) in Datagram(self.receive(&messages[0].what)?) {
                let position = header.sequence_number.wrapping_sub(first) as usize;
                if header.message_type != NLMSG_ERROR || position >= messages.len() {
                    continue;
                }
                let refusal = refusal(&header, body)
                    .filter(|refusal| messages[position].tolerated != Some(refusal.errno));
                let done = over(position, refusal.is_some());
                if let (Some(refusal), None) = (refusal, &first_refused) {
                    let what = messages[position].what.clone();
                    first_refused = Some(NetError::Refused { what, position, refusal });
                }
                if done {
                    return first_refused.map_or(Ok(()), Err);
                }
            }
        }
    }

    /// Asks questions that are answered by one message each; `None` where what is asked for is not there.
    ///
    /// # Errors
    /// [`NetError::Refused`] with the first other refusal, [`NetError::Socket`].
    pub fn ask_each(&mut self, questions: &[Message]) -> Result<Vec<Option<Answer>>, NetError> {
        let mut answers = Vec::new();
        for some in questions.chunks(AT_ONCE) {
            answers.extend(self.ask_some(some)?);
        }
        Ok(answers)
    }

    fn ask_some(&mut self, questions: &[Message]) -> Result<Vec<Option<Answer>>, NetError> {
        let first = self.send(questions)?;
        let (mut answers, mut open) = (vec![None; questions.len()], questions.len());
        let mut first_refused = None;
        while open > 0 {
            for (header, body) in Datagram(self.receive(&questions[0].what)?) {
                let position = header.sequence_number.wrapping_sub(first) as usize;
                if position >= questions.len() || header.message_type == NLMSG_NOOP {
                    continue;
                }
                open -= 1;
                if header.message_type != NLMSG_ERROR {
                    answers[position] = Some(Answer { kind: header.message_type, body: body.to_vec() });
                } else if let Some(refusal) = refusal(&header, body) {
                    let refused =
                        NetError::Refused { what: questions[position].what.clone(), position, refusal };
                    first_refused = first_refused.or((!refused.is_missing()).then_some(refused));
                }
            }
        }
        first_refused.map_or(Ok(answers), Err)
    }

    /// Sends messages at once, numbered on from what is returned.
    fn send(&mut self, messages: &[Message]) -> Result<u32, NetError> {
        let (first, bytes) = self.encode(messages);
        self.transmit(&bytes, &messages[0].what)?;
        Ok(first)
    }

    /// Messages as they are sent, and the number of the first.
    pub(super) fn encode(&mut self, messages: &[Message]) -> (u32, Vec<u8>) {
        let first = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        for message in messages {
            self.sequence = self.sequence.wrapping_add(1);
            message.emit(&mut bytes, self.sequence);
        }
        (first, bytes)
    }

    /// Asks one question and returns all messages of the answer; a dump when `question` has NLM_F_DUMP.
    ///
    /// # Errors
    /// [`NetError::Refused`], [`NetError::Socket`].
    pub fn ask(&mut self, question: &Message) -> Result<Vec<Answer>, NetError> {
        // A dump during which the kernel's table changed may lack or repeat entries: take another.
        for _ in 0..8 {
            if let Some(answers) = self.ask_once(question)? {
                return Ok(answers);
            }
        }
        let problem = "the table changes faster than it can be read".to_owned();
        Err(NetError::Answer { what: question.what.clone(), problem })
    }

    fn ask_once(&mut self, question: &Message) -> Result<Option<Vec<Answer>>, NetError> {
        let dump = question.flags & NLM_F_DUMP == NLM_F_DUMP;
        self.sequence = self.sequence.wrapping_add(1);
        let sequence = self.sequence;
        let flags = if dump { question.flags } else { question.flags | NLM_F_ACK };
        let mut bytes = Vec::new();
        Message { flags, ..question.clone() }.emit(&mut bytes, sequence);
        self.transmit(&bytes, &question.what)?;
        let (mut answers, mut interrupted) = (Vec::new(), false);
        loop {
            let datagram = self.receive(&question.what)?;
            for (header, body) in Datagram(datagram) {
                if header.sequence_number != sequence {
                    continue;
                }
                interrupted |= header.flags & NLM_F_DUMP_INTR != 0;
                match header.message_type {
                    NLMSG_ERROR | NLMSG_DONE => {
                        return match refusal(&header, body) {
                            None => Ok((!interrupted).then_some(answers)),
                            Some(refusal) => {
                                Err(NetError::Refused { what: question.what.clone(), position: 0, refusal })
                            }
                        };
                    }
                    NLMSG_NOOP => {}
                    kind => answers.push(Answer { kind, body: body.to_vec() }),
                }
            }
        }
    }

    fn transmit(&self, bytes: &[u8], what: &str) -> Result<(), NetError> {
        if bytes.len() > USUAL_REQUEST {
            // Room for a batch of thousands of changes, and for as many refusals; refused without the privilege.
            let _ = set_socket_send_buffer_size_force(&self.fd, bytes.len() * 2);
            let _ = set_socket_recv_buffer_size_force(&self.fd, bytes.len() * 8);
        }
        loop {
            match send(&self.fd, bytes, SendFlags::empty()) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(socket_error(what, errno)),
            }
        }
    }

    fn receive(&mut self, what: &str) -> Result<&[u8], NetError> {
        loop {
            self.buffer.clear();
            // Memory that is not written to is not touched.
            match recv(&self.fd, spare_capacity(&mut self.buffer), RecvFlags::empty()) {
                Ok(_) => return Ok(&self.buffer),
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(socket_error(what, errno)),
            }
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What of a message's header matters here.
struct Header {
    message_type: u16,
    flags: u16,
    sequence_number: u32,
}

/// The messages of a datagram.
struct Datagram<'a>(&'a [u8]);

impl<'a> Iterator for Datagram<'a> {
    type Item = (Header, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = u32_at(self.0, 0)? as usize;
        let header = Header {
            message_type: u16_at(self.0, 4)?,
            flags: u16_at(self.0, 6)?,
            sequence_number: u32_at(self.0, 8)?,
        };
        let body = self.0.get(HEADER..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some((header, body))
    }
}

/// The refusal in an NLMSG_ERROR or NLMSG_DONE message; `None` where it is an acknowledgement.
fn refusal(header: &Header, body: &[u8]) -> Option<Refusal> {
    const TEXT: u16 = 1;
    let number = u32_at(body, 0)? as i32;
    if number == 0 {
        return None;
    }
    let errno = Errno::from_raw_os_error(number.saturating_neg());
    // The request's header follows, and with it the whole request unless the kernel capped it.
    let skip = if header.message_type == NLMSG_DONE { 4 } else { 4 + HEADER };
    let text = body.get(skip..).filter(|_| header.flags & NLM_F_ACK_TLVS != 0).and_then(|attributes| {
        NlasIterator::new(attributes)
            .flatten()
            .find(|attribute| attribute.kind() == TEXT)
            .map(|attribute| String::from_utf8_lossy(attribute.value()).trim_end_matches('\0').to_owned())
    });
    Some(Refusal { errno, text: text.unwrap_or_default() })
}

/// Decodes the body of a routing answer.
///
/// # Errors
/// [`NetError::Answer`].
pub fn decode<T: for<'a> Parseable<[u8]>>(answer: &Answer, what: &str) -> Result<T, NetError> {
    T::parse(&answer.body[..])
        .map_err(|error| NetError::Answer { what: what.to_owned(), problem: error.to_string() })
}

/// Turns a socket option on; old kernels that lack it do without.
fn enable(fd: &OwnedFd, option: i32) {
    let on: i32 = 1;
    // SAFETY: the pointer and length describe the local `on`, which outlives the call; the descriptor is open.
    unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_NETLINK,
            option,
            std::ptr::from_ref(&on).cast(),
            size_of::<i32>() as libc::socklen_t,
        );
    }
}

fn socket_error(what: &str, errno: Errno) -> NetError {
    NetError::Socket { what: what.to_owned(), source: io::Error::from(errno) }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}
