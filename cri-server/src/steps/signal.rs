//! Signals by name: the one that asks a container to stop.

use proto::cri::{ContainerConfig, Signal};

use super::cri_config::invalid;
use crate::error::Error;
use crate::spec::ImageConfig;

/// Names and numbers of the ordinary signals.
const SIGNALS: [(&str, i32); 35] = [
    ("ABRT", libc::SIGABRT),
    ("ALRM", libc::SIGALRM),
    ("BUS", libc::SIGBUS),
    ("CHLD", libc::SIGCHLD),
    ("CLD", libc::SIGCHLD),
    ("CONT", libc::SIGCONT),
    ("FPE", libc::SIGFPE),
    ("HUP", libc::SIGHUP),
    ("ILL", libc::SIGILL),
    ("INT", libc::SIGINT),
    ("IO", libc::SIGIO),
    ("IOT", libc::SIGABRT),
    ("KILL", libc::SIGKILL),
    ("PIPE", libc::SIGPIPE),
    ("POLL", libc::SIGPOLL),
    ("PROF", libc::SIGPROF),
    ("PWR", libc::SIGPWR),
    ("QUIT", libc::SIGQUIT),
    ("SEGV", libc::SIGSEGV),
    ("STKFLT", libc::SIGSTKFLT),
    ("STOP", libc::SIGSTOP),
    ("SYS", libc::SIGSYS),
    ("TERM", libc::SIGTERM),
    ("TRAP", libc::SIGTRAP),
    ("TSTP", libc::SIGTSTP),
    ("TTIN", libc::SIGTTIN),
    ("TTOU", libc::SIGTTOU),
    ("URG", libc::SIGURG),
    ("USR1", libc::SIGUSR1),
    ("USR2", libc::SIGUSR2),
    ("VTALRM", libc::SIGVTALRM),
    ("WINCH", libc::SIGWINCH),
    ("XCPU", libc::SIGXCPU),
    ("XFSZ", libc::SIGXFSZ),
    ("UNUSED", libc::SIGSYS),
];
/// First and last real-time signal of the C library.
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// The signal that asks a container to stop: the request's, the image's, or SIGTERM.
pub fn stop_signal(config: &ContainerConfig, image: &ImageConfig) -> Result<i32, Error> {
    match Signal::try_from(config.stop_signal) {
        Ok(Signal::RuntimeDefault) => {}
        Ok(signal) => {
            let name = signal.as_str_name().trim_start_matches("SIGNAL_");
            return number(name)
                .ok_or_else(|| invalid("config.stop_signal", format!("expected a signal, got {name}")));
        }
        Err(_) => {
            let reason = format!("expected a signal, got {}", config.stop_signal);
            return Err(invalid("config.stop_signal", reason));
        }
    }
    match image.stop_signal.as_str() {
        "" => Ok(libc::SIGTERM),
        text => number(text)
            .ok_or_else(|| invalid("image.StopSignal", format!("expected a signal, got {text:?}"))),
    }
}

/// The CRI's name of a signal.
pub fn of_number(wanted: i32) -> Signal {
    let all = (1..).map_while(|value| Signal::try_from(value).ok());
    let mut named =
        all.filter(|signal| number(signal.as_str_name().trim_start_matches("SIGNAL_")) == Some(wanted));
    named.next().unwrap_or_default()
}

/// Number of a signal given as `15`, `TERM`, `SIGTERM`, `RTMIN+3` or `SIGRTMINPLUS3`.
fn number(text: &str) -> Option<i32> {
    let upper = text.to_ascii_uppercase();
    if let Ok(number) = upper.parse::<i32>() {
        return (1..=RTMAX).contains(&number).then_some(number);
    }
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some((_, number)) = SIGNALS.iter().find(|(known, _)| *known == name) {
        return Some(*number);
    }
    let offset = |rest: &str, sign: &str, word: &str| match rest {
        "" => Some(0),
        rest => rest.strip_prefix(sign).or_else(|| rest.strip_prefix(word))?.parse::<i32>().ok(),
    };
    let number = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(rest), _) => RTMIN + offset(rest, "+", "PLUS")?,
        (None, Some(rest)) => RTMAX - offset(rest, "-", "MINUS")?,
        (None, None) => return None,
    };
    (RTMIN..=RTMAX).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        let check = |text: &str, expect: Option<i32>| assert_eq!(number(text), expect, "{text}");
        check("15", Some(15));
        check("0", None);
        check("65", None);
        check("sigterm", Some(15));
        check("QUIT", Some(3));
        check("SIGRTMIN+3", Some(37));
        check("SIGRTMAXMINUS14", Some(50));
        check("RTMIN+31", None);
        check("NOPE", None);
        check("", None);
    }

    #[test]
    fn every_signal_of_the_cri_has_a_number() {
        for value in 0..=65 {
            let config = ContainerConfig { stop_signal: value, ..Default::default() };
            let number = stop_signal(&config, &ImageConfig::default()).unwrap();
            // Some signals have two names.
            assert_eq!(
                super::number(of_number(number).as_str_name().trim_start_matches("SIGNAL_")),
                Some(number)
            );
        }
        let config = ContainerConfig { stop_signal: 66, ..Default::default() };
        assert!(stop_signal(&config, &ImageConfig::default()).is_err());
    }
}
