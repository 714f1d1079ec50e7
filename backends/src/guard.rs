//! A process that ends with its parent, however the parent ends.
//!
//! A small shell starts the process, says its id, and waits on its own standard input. When the parent dies - also by
//! kill -9 - the input closes, and the shell kills the process. So a crashed test leaves nothing running.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// The shell's part. The process reads nothing; its errors go to the log. The process says its own id before it
/// becomes the program: an id that the shell printed could come after the program's first line.
const GUARD: &str = r#"log=$1; shift; sh -c 'echo $$; exec "$@"' sh "$@" 2>>"$log" </dev/null & child=$!; cat >/dev/null; kill -9 "$child" 2>/dev/null; wait"#;
/// How long a process may take to end after it was asked to.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// How many of the log's last lines an error shows.
const LOG_LINES: usize = 30;

/// A running process and its guard.
pub struct Guarded {
    name: String,
    pid: u32,
    guard: Child,
    lines: Mutex<mpsc::Receiver<String>>,
    log: PathBuf,
}

impl Guarded {
    /// Starts `command`; its errors are appended to `log`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(name: &str, command: &Command, log: &Path) -> anyhow::Result<Self> {
        Self::start_as(name, command, log, None)
    }

    /// The same, as another user: `(uid, gid)`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_as(
        name: &str,
        command: &Command,
        log: &Path,
        user: Option<(u32, u32)>,
    ) -> anyhow::Result<Self> {
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(GUARD).arg("sh").arg(log).arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        if let Some(folder) = command.get_current_dir() {
            shell.current_dir(folder);
        }
        if let Some((uid, gid)) = user {
            use std::os::unix::process::CommandExt;
            shell.uid(uid).gid(gid);
        }
        let mut guard = shell
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let lines = read_lines(guard.stdout.take().context("no stdout")?);
        let pid = lines
            .recv_timeout(STOP_TIMEOUT)
            .ok()
            .and_then(|line| line.parse().ok())
            .with_context(|| format!("{name} did not start"))?;
        Ok(Self { name: name.to_owned(), pid, guard, lines: Mutex::new(lines), log: log.to_owned() })
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits for the line of its standard output that begins with `prefix`, and answers the rest of it.
    ///
    /// # Errors
    /// With the end of the log, when the process ends or `timeout` passes first.
    pub fn line_after(&self, prefix: &str, timeout: Duration) -> anyhow::Result<String> {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let end = Instant::now() + timeout;
        loop {
            let left = end.saturating_duration_since(Instant::now()).min(Duration::from_millis(200));
            match lines.recv_timeout(left) {
                Ok(line) => {
                    if let Some(rest) = line.strip_prefix(prefix) {
                        return Ok(rest.to_owned());
                    }
                }
                Err(_) if self.is_running() && Instant::now() < end => {}
                Err(_) => bail!("{} did not come up; the end of its log:\n{}", self.name, self.log_end()),
            }
        }
    }

    /// Sends a signal, by name: `TERM`, `KILL`, `STOP`, `CONT`.
    ///
    /// # Errors
    /// When there is no such process any more.
    pub fn signal(&self, signal: &str) -> anyhow::Result<()> {
        let sent = Command::new("kill").arg(format!("-{signal}")).arg(self.pid.to_string()).status()?;
        if sent.success() { Ok(()) } else { bail!("{} (process {}) is gone already", self.name, self.pid) }
    }

    pub fn is_running(&self) -> bool {
        let asked = Command::new("kill").arg("-0").arg(self.pid.to_string()).stderr(Stdio::null()).status();
        // A zombie, which its guard will collect, takes signals too.
        let zombie = std::fs::read_to_string(format!("/proc/{}/stat", self.pid))
            .is_ok_and(|stat| stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z')));
        asked.is_ok_and(|status| status.success()) && !zombie
    }

    /// Kills it as a power cut would: no farewell.
    ///
    /// # Errors
    /// When it is gone already.
    pub fn kill(self) -> anyhow::Result<()> {
        self.signal("KILL")?;
        self.wait_for_end()
    }

    /// Asks it to end, and waits until it has.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn stop(self) -> anyhow::Result<()> {
        if self.is_running() {
            self.signal("TERM")?;
        }
        self.wait_for_end()
    }

    /// The end of its log, for errors.
    pub fn log_end(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }

    fn wait_for_end(&self) -> anyhow::Result<()> {
        let end = Instant::now() + STOP_TIMEOUT;
        while self.is_running() {
            if Instant::now() > end {
                bail!("{} did not end; the end of its log:\n{}", self.name, self.log_end());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // Closing its input makes the guard kill the process and end.
        drop(self.guard.stdin.take());
        let _ = self.guard.wait();
    }
}

fn read_lines(stdout: ChildStdout) -> mpsc::Receiver<String> {
    let (send, lines) = mpsc::channel();
    std::thread::spawn(move || {
        let mut reader = BufReader::new(stdout);
        let mut line = String::new();
        while reader.read_line(&mut line).is_ok_and(|read| read > 0) {
            if send.send(line.trim_end().to_owned()).is_err() {
                break;
            }
            line.clear();
        }
        // Nobody listens any more, but the process must not block on a full pipe.
        let _ = reader.read_to_end(&mut Vec::new());
    });
    lines
}

/// A port of the loopback address that is free now.
///
/// # Errors
/// When there is none.
pub fn free_port() -> anyhow::Result<u16> {
    Ok(std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// The program of that name in `PATH` or one of `folders`.
pub fn find_program(name: &str, folders: &[PathBuf]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).chain(folders.iter().cloned()).map(|f| f.join(name)).find(|p| p.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guarded_process_speaks_and_ends_with_its_guard() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let mut command = Command::new("sh");
        command.arg("-c").arg("echo trouble >&2; echo ready $WORD; sleep 600").env("WORD", "now");
        let process = Guarded::start("sleeper", &command, &log).unwrap();
        assert_eq!(process.line_after("ready ", Duration::from_secs(5)).unwrap(), "now");
        assert_eq!(process.log_end(), "trouble");
        let pid = process.pid();
        assert!(process.is_running());
        drop(process);
        let alive =
            Command::new("kill").arg("-0").arg(pid.to_string()).stderr(Stdio::null()).status().unwrap();
        assert!(!alive.success());
    }
}
