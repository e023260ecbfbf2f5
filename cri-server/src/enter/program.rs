//! Finding the program of the command in the container, and becoming it.

use std::ffi::CString;

use rustix::io::Errno;

use super::sys;
use crate::spec::oci::Process;

/// Where a command without a `PATH` looks.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Becomes the program; returns only with the reason why it could not.
pub fn execute(process: &Process) -> String {
    let environment = environment(process);
    let strings =
        |list: &[String]| list.iter().map(|text| CString::new(text.as_str())).collect::<Result<Vec<_>, _>>();
    let (Ok(arguments), Ok(variables)) = (strings(&process.args), strings(&environment)) else {
        return "NUL byte in the command line or the environment".into();
    };
    let Some(name) = process.args.first().filter(|name| !name.is_empty()) else {
        return "process.args: expected a program, got none".into();
    };
    let mut refused = None;
    for place in candidates(name, &environment) {
        let Ok(place) = CString::new(place) else { continue };
        match sys::execute(&place, &arguments, &variables) {
            // Whoever has a program of that name further on means that one. One that is there lacks its interpreter.
            Errno::NOENT if rustix::fs::stat(place.as_c_str()).is_err() => {}
            Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG if !name.contains('/') => {}
            Errno::ACCESS if !name.contains('/') => refused = Some(Errno::ACCESS),
            error => return format!("exec: {name:?}: {}", told(error)),
        }
    }
    match refused {
        Some(error) => format!("exec: {name:?}: {}", told(error)),
        None if name.contains('/') => format!("exec: {name:?}: {}", told(Errno::NOENT)),
        None => format!("exec: {name:?}: executable file not found in $PATH"),
    }
}

/// A `HOME` is always there, as OCI runtimes have it.
fn environment(process: &Process) -> Vec<String> {
    let mut environment = process.env.clone();
    environment.retain(|entry| entry != "HOME=");
    if !environment.iter().any(|entry| entry.starts_with("HOME=")) {
        environment.push("HOME=/".into());
    }
    environment
}

fn told(error: Errno) -> String {
    let known = match error {
        Errno::NOENT => "no such file or directory",
        Errno::ACCESS => "permission denied",
        Errno::NOEXEC => "exec format error",
        Errno::TOOBIG => "argument list too long",
        Errno::ISDIR => "is a directory",
        Errno::LOOP => "too many levels of symbolic links",
        Errno::TXTBSY => "text file busy",
        _ => return error.to_string(),
    };
    known.into()
}

/// A name with a slash is a path; others are looked for in `PATH`, where an empty entry is the working directory.
fn candidates(name: &str, environment: &[String]) -> Vec<String> {
    if name.contains('/') {
        return vec![name.to_owned()];
    }
    let path = environment.iter().rev().find_map(|entry| entry.strip_prefix("PATH="));
    let place = |directory: &str| match directory {
        "" => format!("./{name}"),
        directory => format!("{directory}/{name}"),
    };
    path.unwrap_or(DEFAULT_PATH).split(':').map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_looked_for_as_the_environment_says() {
        let check = |name: &str, environment: &[&str], expect: &[&str]| {
            let environment: Vec<_> = environment.iter().map(|entry| entry.to_string()).collect();
            assert_eq!(candidates(name, &environment), expect, "{name} {environment:?}");
        };
        check("ls", &["A=b", "PATH=/a:/b"], &["/a/ls", "/b/ls"]);
        check("ls", &["PATH=:/b"], &["./ls", "/b/ls"]);
        check("ls", &["PATH=/old", "PATH=/new"], &["/new/ls"]);
        check("./ls", &["PATH=/a"], &["./ls"]);
        check("/x/ls", &[], &["/x/ls"]);
        assert_eq!(candidates("ls", &[]).len(), 6);
    }
}
