//! Resolves the user of a container from its request, its image's `USER` and the image's passwd and group files.
//!
//! The files are hostile: they are read through a descriptor of the root, at most 1 MiB each, and lines that are none
//! are skipped. The `USER` string is hostile too. What decides:
//!
//! - Digits are a number, never the name of an account, whatever passwd says: an image must not be able to call
//!   root `1000`. Numbers end at 2³¹−1, where the OCI runtimes end.
//! - An empty part (`:`, `user:`, `:group`) is an error, not root.
//! - The primary group is always one of the supplementary groups, or a file that denies that group would be readable.
//!
//! Must not know: the CRI's messages, the OCI specification.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use super::fs;

/// Largest user or group id.
const MAX_ID: i64 = i32::MAX as i64;
/// Largest passwd or group file, in bytes.
const MAX_FILE: u64 = 1 << 20;
/// Longest `USER`, in bytes.
const MAX_USER: usize = 256;
/// What the kernel takes.
const MAX_GROUPS: usize = 65_536;

/// What request and image say about the user.
#[derive(Debug, Clone, Copy, Default)]
pub struct UserRequest<'a> {
    /// `run_as_user`.
    pub run_as_user: Option<i64>,
    /// `run_as_username`; empty = unset.
    pub run_as_username: &'a str,
    /// `run_as_group`.
    pub run_as_group: Option<i64>,
    /// `supplemental_groups`.
    pub supplemental_groups: &'a [i64],
    /// `supplemental_groups_policy`.
    pub policy: GroupsPolicy,
    /// `USER` of the image; empty = root. It counts only where the request names no user.
    pub image_user: &'a str,
}

/// Which supplementary groups a user gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GroupsPolicy {
    /// Those of the request and those that the image's group file names the user in.
    #[default]
    Merge,
    /// Those of the request.
    Strict,
}

/// A user as the kernel knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedUser {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary groups, sorted, the primary one among them.
    pub additional_gids: Vec<u32>,
    /// Home directory; `/` where passwd does not say.
    pub home: String,
}

/// Why there is no such user.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// The value cannot denote a user or group. An invalid argument.
    #[error("invalid {field} {value:?}: {reason}")]
    Invalid {
        /// Where the value is from.
        field: &'static str,
        /// The value.
        value: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// `run_as_group` without a user. An invalid argument.
    #[error("run_as_group is set without run_as_user or run_as_username")]
    GroupWithoutUser,
    /// `run_as_user` and `run_as_username`. An invalid argument.
    #[error("both run_as_user and run_as_username are set")]
    TwoUsers,
    /// The image has no such account.
    #[error("user {0:?} is not in the image's /etc/passwd")]
    UnknownUser(String),
    /// The image has no such group.
    #[error("group {0:?} is not in the image's /etc/group")]
    UnknownGroup(String),
    /// More groups than a process can have.
    #[error("the user is in more than {MAX_GROUPS} groups")]
    TooManyGroups,
    /// The image's file is there and is not fit to be read.
    #[error("read {path} of the image")]
    Read {
        /// Path in the image.
        path: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Resolves the user of a container whose root file system is open as `root`.
pub fn resolve(root: impl AsFd, request: &UserRequest<'_>) -> Result<ResolvedUser, UserError> {
    let root = root.as_fd();
    resolve_with(request, |path| fs::read_in_root(root, Path::new(path), MAX_FILE))
}

/// The same with another way to read a file of the image: its bytes, or `None` when it is absent.
pub fn resolve_with(
    request: &UserRequest<'_>,
    read: impl Fn(&'static str) -> io::Result<Option<Vec<u8>>>,
) -> Result<ResolvedUser, UserError> {
    let wanted = wanted(request)?;
    let supplemental = supplemental(request.supplemental_groups)?;
    let accounts = load(PASSWD, &read)?;
    let account = match &wanted.user {
        Who::Id(uid) => find_account(&accounts, |account| account.uid == *uid),
        Who::Named(name) => {
            let found = find_account(&accounts, |account| account.name == *name);
            Some(found.ok_or_else(|| UserError::UnknownUser(name.to_string()))?)
        }
    };
    let uid = match wanted.user {
        Who::Id(uid) => uid,
        Who::Named(_) => account.as_ref().expect("a name without an account is an error above").uid,
    };
    let needs_groups = request.policy == GroupsPolicy::Merge || matches!(wanted.group, Some(Who::Named(_)));
    let groups = if needs_groups { load(GROUP, &read)? } else { Vec::new() };
    let gid = match wanted.group {
        Some(Who::Id(gid)) => gid,
        Some(Who::Named(name)) => {
            let mut found = group_lines(&groups).filter(|group| group.name == name);
            found.next().ok_or_else(|| UserError::UnknownGroup(name.into()))?.gid
        }
        None => account.as_ref().map_or(0, |account| account.gid),
    };
    let mut all = BTreeSet::from([gid]);
    all.extend(supplemental);
    if let (GroupsPolicy::Merge, Some(account)) = (request.policy, &account) {
        all.extend(group_lines(&groups).filter(|group| group.has(account.name)).map(|group| group.gid));
    }
    if all.len() > MAX_GROUPS {
        return Err(UserError::TooManyGroups);
    }
    let home = account.map_or("/", |account| account.home).to_string();
    Ok(ResolvedUser { uid, gid, additional_gids: all.into_iter().collect(), home })
}

#[derive(Debug, Clone, Copy)]
struct Wanted<'a> {
    user: Who<'a>,
    group: Option<Who<'a>>,
}

#[derive(Debug, Clone, Copy)]
enum Who<'a> {
    Id(u32),
    Named(&'a str),
}

fn wanted<'a>(request: &UserRequest<'a>) -> Result<Wanted<'a>, UserError> {
    let group = request.run_as_group.map(|gid| id("run_as_group", gid).map(Who::Id)).transpose()?;
    match (request.run_as_user, request.run_as_username) {
        (Some(_), name) if !name.is_empty() => Err(UserError::TwoUsers),
        (Some(uid), _) => Ok(Wanted { user: Who::Id(id("run_as_user", uid)?), group }),
        (None, "") if group.is_some() => Err(UserError::GroupWithoutUser),
        (None, "") => image_user(request.image_user),
        (None, name) => Ok(Wanted { user: part("run_as_username", name, name)?, group }),
    }
}

/// `USER` of an image: `user`, `user:group`, names or numbers.
fn image_user(text: &str) -> Result<Wanted<'_>, UserError> {
    const FIELD: &str = "USER of the image";
    if text.is_empty() {
        return Ok(Wanted { user: Who::Id(0), group: None });
    }
    Ok(match text.split_once(':') {
        None => Wanted { user: part(FIELD, text, text)?, group: None },
        Some((user, group)) => {
            Wanted { user: part(FIELD, text, user)?, group: Some(part(FIELD, text, group)?) }
        }
    })
}

fn part<'a>(field: &'static str, whole: &str, text: &'a str) -> Result<Who<'a>, UserError> {
    let invalid = |reason| UserError::Invalid { field, value: shorten(whole), reason };
    if text.is_empty() {
        return Err(invalid("an empty part"));
    }
    if whole.len() > MAX_USER {
        return Err(invalid("longer than 256 bytes"));
    }
    if text.bytes().all(|b| b.is_ascii_digit()) {
        return number(text).map(Who::Id).ok_or_else(|| invalid("a number above 2147483647"));
    }
    if text.chars().any(char::is_control) {
        return Err(invalid("a control character"));
    }
    if text.contains([':', ',', '/']) {
        return Err(invalid("a character that no name has"));
    }
    if text.starts_with(['-', '+']) {
        return Err(invalid("a sign"));
    }
    Ok(Who::Named(text))
}

fn shorten(text: &str) -> String {
    text.chars().take(MAX_USER).collect()
}

fn id(field: &'static str, value: i64) -> Result<u32, UserError> {
    let in_range = (0..=MAX_ID).contains(&value);
    u32::try_from(value).ok().filter(|_| in_range).ok_or_else(|| UserError::Invalid {
        field,
        value: value.to_string(),
        reason: "not between 0 and 2147483647",
    })
}

fn supplemental(groups: &[i64]) -> Result<Vec<u32>, UserError> {
    groups.iter().map(|gid| id("supplemental_groups", *gid)).collect()
}

/// Decimal digits only, at most [`MAX_ID`].
fn number(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    // More digits than a number of the range has, but for leading zeros, do not fit u64 either.
    let value = digits.then(|| text.parse::<u64>().ok())??;
    u32::try_from(value).ok().filter(|value| i64::from(*value) <= MAX_ID)
}

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";

fn load(
    path: &'static str,
    read: impl Fn(&'static str) -> io::Result<Option<Vec<u8>>>,
) -> Result<Vec<u8>, UserError> {
    match read(path) {
        Ok(bytes) => Ok(bytes.unwrap_or_default()),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(Vec::new()),
        Err(source) => Err(UserError::Read { path, source }),
    }
}

/// The fields of each line that is text without NUL.
fn lines(file: &[u8]) -> impl Iterator<Item = std::str::Split<'_, char>> {
    let texts = file.split(|b| *b == b'\n').filter_map(|line| std::str::from_utf8(line).ok());
    texts.filter(|line| !line.contains('\0')).map(|line| line.split(':'))
}

struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

/// The first account of a passwd file that matches.
fn find_account<'a>(file: &'a [u8], matches: impl Fn(&Account<'a>) -> bool) -> Option<Account<'a>> {
    let accounts = lines(file).filter_map(|mut fields| {
        let name = fields.next().filter(|name| !name.is_empty())?;
        let (_password, uid, gid) = (fields.next()?, number(fields.next()?)?, number(fields.next()?)?);
        let home = fields.nth(1).filter(|home| is_home(home)).unwrap_or("/");
        Some(Account { name, uid, gid, home })
    });
    accounts.into_iter().find(matches)
}

/// The directory becomes an environment variable, and a field of other files: nothing that ends a line or field.
fn is_home(home: &str) -> bool {
    home.starts_with('/') && !home.chars().any(char::is_control)
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl Group<'_> {
    fn has(&self, account: &str) -> bool {
        self.members.split(',').any(|member| member.trim_end_matches('\r') == account)
    }
}

fn group_lines(file: &[u8]) -> impl Iterator<Item = Group<'_>> {
    lines(file).filter_map(|mut fields| {
        let name = fields.next().filter(|name| !name.is_empty())?;
        let (_password, gid) = (fields.next()?, number(fields.next()?)?);
        Some(Group { name, gid, members: fields.next().unwrap_or_default() })
    })
}

#[cfg(test)]
mod tests;
