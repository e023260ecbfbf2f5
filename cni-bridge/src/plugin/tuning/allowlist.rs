//! The administrator's list of kernel parameters that configurations may set: one regular expression a line, of which
//! one must fit. Understood are literals, `.`, `[…]`, `\` before a character, `*`, `+`, `?`, `^` at the beginning, `$`
//! at the end, and `|` between whole expressions.

use std::io;
use std::path::Path;

use proto::cni::{CniError, ErrorCode};

/// Where it is; without the file everything is allowed.
pub const FILE: &str = "/etc/cni/tuning/allowlist.conf";

/// The list.
#[derive(Debug, Clone)]
pub struct Allowlist {
    patterns: Vec<Pattern>,
}

#[derive(Debug, Clone, Default)]
struct Pattern {
    from_start: bool,
    to_end: bool,
    steps: Vec<Step>,
}

#[derive(Debug, Clone)]
struct Step {
    atom: Atom,
    may_skip: bool,
    may_repeat: bool,
}

#[derive(Debug, Clone)]
enum Atom {
    Any,
    One(char),
    Class { negated: bool, ranges: Vec<(char, char)> },
}

impl Allowlist {
    /// Reads the list; `None` where there is none.
    ///
    /// # Errors
    /// [`ErrorCode::IO_FAILURE`]; [`ErrorCode::INVALID_NETWORK_CONFIG`] naming the line that is not understood.
    pub fn load(path: &Path) -> Result<Option<Self>, CniError> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                let what = format!("reading {}", path.display());
                return Err(CniError::caused(ErrorCode::IO_FAILURE, what, &error));
            }
        };
        let bad = |(number, problem): (usize, &str)| {
            CniError::config(&format!("{} line {number}", path.display()), problem)
        };
        Self::parse(&text).map(Some).map_err(bad)
    }

    fn parse(text: &str) -> Result<Self, (usize, &'static str)> {
        let mut patterns = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if !line.is_empty() {
                patterns.extend(compile(line).map_err(|problem| (index + 1, problem))?);
            }
        }
        Ok(Self { patterns })
    }

    /// Whether the parameter may be set.
    pub fn allows(&self, written: &str) -> bool {
        self.patterns.iter().any(|pattern| pattern.fits(written))
    }
}

/// The expressions of a line.
fn compile(line: &str) -> Result<Vec<Pattern>, &'static str> {
    let mut patterns = vec![Pattern::default()];
    let mut rest = line.chars().peekable();
    while let Some(c) = rest.next() {
        let pattern = patterns.last_mut().expect("it begins with one and only grows");
        let atom = match c {
            '|' => {
                patterns.push(Pattern::default());
                continue;
            }
            '^' if pattern.steps.is_empty() => {
                pattern.from_start = true;
                continue;
            }
            '$' if rest.peek().is_none_or(|next| *next == '|') => {
                pattern.to_end = true;
                continue;
            }
            '*' | '+' | '?' => {
                let step = pattern.steps.last_mut().ok_or("there is nothing to repeat")?;
                step.may_skip |= c != '+';
                step.may_repeat |= c != '?';
                continue;
            }
            '.' => Atom::Any,
            '[' => class(&mut rest)?,
            '\\' => match rest.next() {
                Some(escaped) if !escaped.is_ascii_alphanumeric() => Atom::One(escaped),
                _ => return Err("'\\' is understood before punctuation only"),
            },
            '(' | ')' | '{' | '}' | '^' | '$' => {
                return Err("groups, counts and inner anchors are not understood");
            }
            literal => Atom::One(literal),
        };
        pattern.steps.push(Step { atom, may_skip: false, may_repeat: false });
    }
    Ok(patterns)
}

/// What follows `[`, up to its `]`.
fn class(rest: &mut impl Iterator<Item = char>) -> Result<Atom, &'static str> {
    const OPEN: &str = "'[' is not closed";
    let (mut negated, mut ranges, mut first) = (false, Vec::<(char, char)>::new(), true);
    let mut range_open = false;
    loop {
        let c = rest.next().ok_or(OPEN)?;
        match c {
            '^' if first && !negated => {
                negated = true;
                continue;
            }
            ']' if !first => break,
            '-' if !first && !range_open => range_open = true,
            c => {
                let c = if c == '\\' { rest.next().ok_or(OPEN)? } else { c };
                match ranges.last_mut() {
                    Some(last) if range_open => last.1 = c,
                    _ => ranges.push((c, c)),
                }
                range_open = false;
            }
        }
        first = false;
    }
    if range_open {
        ranges.push(('-', '-'));
    }
    Ok(Atom::Class { negated, ranges })
}

impl Pattern {
    /// Follows all ways through the expression at once, so that time grows with the lengths only.
    fn fits(&self, text: &str) -> bool {
        let mut at = vec![false; self.steps.len() + 1];
        let reach = |at: &mut Vec<bool>, from: usize| {
            at[from] = true;
            let skippable = self.steps[from..].iter().take_while(|step| step.may_skip).count();
            at[from..=from + skippable].fill(true);
        };
        reach(&mut at, 0);
        for c in text.chars() {
            if at[self.steps.len()] && !self.to_end {
                return true;
            }
            let mut next = vec![false; at.len()];
            for (position, step) in self.steps.iter().enumerate() {
                if at[position] && step.atom.is(c) {
                    reach(&mut next, position + 1);
                    if step.may_repeat {
                        next[position] = true;
                    }
                }
            }
            if !self.from_start {
                reach(&mut next, 0);
            }
            at = next;
        }
        at[self.steps.len()]
    }
}

impl Atom {
    fn is(&self, c: char) -> bool {
        match self {
            Self::Any => true,
            Self::One(own) => *own == c,
            Self::Class { negated, ranges } => {
                ranges.iter().any(|(low, high)| (*low..=*high).contains(&c)) != *negated
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_fit_as_elsewhere() {
        let check = |list: &str, name: &str, expect: bool| {
            assert_eq!(Allowlist::parse(list).unwrap().allows(name), expect, "{list:?} and {name:?}");
        };
        check("", "net.core.somaxconn", false);
        check("somaxconn", "net.core.somaxconn", true);
        check("^net\\.core\\.somaxconn$", "net.core.somaxconn", true);
        check("^net\\.core\\.somaxconn$", "net.core.somaxconn2", false);
        check("^net\\.core\\.somaxconn$", "netxcore.somaxconn", false);
        check("core.somaxconn$\n\n^net.ipv4.conf.IFNAME.[a-z_]*$", "net.ipv4.conf.IFNAME.arp_notify", true);
        check("^net.ipv4.conf.IFNAME.[a-z_]*$", "net.ipv4.conf.IFNAME.Arp", false);
        check("^net.[^i]", "net.ipv4", false);
        check("^net.[^i]", "net.core", true);
        check("^a+b?c*$", "aab", true);
        check("^a+b?c*$", "aaccc", true);
        check("^a+b?c*$", "b", false);
        check("^x$|^y$", "y", true);
        check("^x$|^y$", "xy", false);
        check("[]a-]", "-", true);
        check("^$", "", true);
        check(&".*".repeat(50), &"x".repeat(500), true);
    }

    #[test]
    fn what_is_not_understood_names_the_line() {
        let check = |list: &str, line: usize| {
            assert_eq!(Allowlist::parse(list).unwrap_err().0, line, "{list:?}");
        };
        check("x\n(y)", 2);
        check("*", 1);
        check("[a", 1);
        check("a{2}", 1);
        check("a\\", 1);
        check("a\\d", 1);
    }
}
