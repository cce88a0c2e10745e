/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

//! What a token process that was taken over could try, from inside its sandbox.
//!
//! Each attempt names the rules that stand in its way. The tests play it with all rules, and without them one by one: a rule
//! without which nothing changes is not tested, and fails.

use std::ffi::{CString, c_long, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr;

use token_workers::sandbox::Step;

/// What comes of an attempt.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// The process is ended by `SIGSYS`.
    Killed,
    /// The kernel refuses it with this error number.
    Error(i32),
    /// It succeeds.
    Done,
    /// The kernel does it, or has something else against it than the sandbox.
    Reached,
}

impl Outcome {
    pub fn matches(self, seen: Self) -> bool {
        self == seen || (self == Self::Reached && matches!(seen, Self::Error(_) | Self::Done))
    }
}

/// What an attempt may use.
pub struct Place {
    /// Is there before the attempt, and belongs to it alone.
    pub folder: PathBuf,
    /// The port of a server on the loopback interface.
    pub tcp_port: u16,
    /// The name of a server among the abstract sockets.
    pub abstract_name: Vec<u8>,
    /// Another process of the same user, which this one may trace as far as the system is concerned.
    pub victim: i32,
}

impl Place {
    /// Where the broker keeps its store.
    pub fn store(&self) -> PathBuf {
        self.folder.join("store")
    }

    pub fn outside(&self) -> PathBuf {
        self.folder.join("outside")
    }

    pub fn key(&self) -> PathBuf {
        self.folder.join("home/.ssh/id_ed25519")
    }

    pub fn program(&self) -> PathBuf {
        self.folder.join("program")
    }

    /// The socket of a service like pcscd.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("service")
    }
}

type Run = fn(&Place) -> Result<(), i32>;

/// Something that a process could try.
#[derive(Clone, Copy)]
pub struct Attempt {
    pub name: &'static str,
    /// The system calls that it takes.
    pub calls: &'static [c_long],
    /// With all rules: of a broker that has a store, and of all other processes.
    pub outcomes: [Outcome; 2],
    /// With all rules, of the worker of a module, which has its own files as the broker has its store, if it is not the
    /// broker's.
    pub of_module: Option<Outcome>,
    /// The same of one that may talk to PC/SC, if it is not that of others. What is pretended looks as if it were done.
    pub of_pcsc_module: Option<Outcome>,
    /// The same of the worker of a TPM in software, if it is not that of all other processes.
    pub of_software_tpm: Option<Outcome>,
    /// The same where the filter lets the system calls through.
    pub unfiltered: Outcome,
    /// The first version of Landlock that makes a difference to that.
    pub since: i32,
    /// The same where another step of the lock-down is left out as well.
    pub without: Option<(Step, Outcome)>,
    pub run: Run,
}

/// The worker of a module, by the name of the documentation.
pub const MODULE: &str = "module-worker";

/// That of a module that may talk to PC/SC.
pub const PCSC_MODULE: &str = "module-worker with pcsc";

/// The worker of a TPM in software, by the name of the documentation.
pub const SOFTWARE_TPM: &str = "tpm-worker with swtpm";

impl Attempt {
    /// With all rules.
    pub fn outcome(&self, kind: &str) -> Outcome {
        let [broker, others] = self.outcomes;
        match kind {
            "broker" => broker,
            MODULE => self.of_module.unwrap_or(broker),
            PCSC_MODULE => self.of_pcsc_module.or(self.of_module).unwrap_or(broker),
            SOFTWARE_TPM => self.of_software_tpm.unwrap_or(others),
            _ => others,
        }
    }

    /// What comes of it in the worker of a module that may talk to PC/SC.
    const fn with_pcsc(self, outcome: Outcome) -> Self {
        Self {
            of_pcsc_module: Some(outcome),
            ..self
        }
    }

    /// What comes of it in the worker of a module.
    const fn in_module(self, outcome: Outcome) -> Self {
        Self {
            of_module: Some(outcome),
            ..self
        }
    }
}

use Outcome::{Done, Error, Killed, Reached};

const REFUSED: Outcome = Error(libc::EACCES);
const FORBIDDEN: Outcome = Error(libc::EPERM);

/// Only the filter of system calls stands in the way.
const fn filtered(name: &'static str, calls: &'static [c_long], run: Run) -> Attempt {
    Attempt {
        name,
        calls,
        outcomes: [Killed, Killed],
        of_module: None,
        of_pcsc_module: None,
        of_software_tpm: None,
        unfiltered: Reached,
        since: 0,
        without: None,
        run,
    }
}

/// The same, and it would succeed.
const fn filtered_alone(name: &'static str, calls: &'static [c_long], run: Run) -> Attempt {
    Attempt {
        unfiltered: Done,
        ..filtered(name, calls, run)
    }
}

/// Landlock of that version stands in the way as well.
const fn landlocked(
    name: &'static str,
    calls: &'static [c_long],
    since: i32,
    refused: Outcome,
    run: Run,
) -> Attempt {
    Attempt {
        unfiltered: refused,
        since,
        without: Some((Step::Landlock, Done)),
        ..filtered(name, calls, run)
    }
}

/// Opens a file, for which the broker has the system call.
const fn opened(name: &'static str, run: Run) -> Attempt {
    Attempt {
        outcomes: [REFUSED, Killed],
        ..landlocked(name, &[libc::SYS_openat], 1, REFUSED, run)
    }
}

/// A resource limit stands in the way.
const fn limited(name: &'static str, error: i32, run: Run) -> Attempt {
    Attempt {
        outcomes: [Error(error), Error(error)],
        unfiltered: Error(error),
        without: Some((Step::Limits, Done)),
        ..filtered(name, &[], run)
    }
}

pub const ATTEMPTS: &[Attempt] = &[
    // Files.
    opened("read `/etc/passwd`", |_| {
        open(Path::new("/etc/passwd"), libc::O_RDONLY)
    }),
    opened("read a key in `~/.ssh`", |place| {
        open(&place.key(), libc::O_RDONLY)
    }),
    opened("list a folder", |place| open(&place.folder, libc::O_RDONLY)),
    opened("write to a file", |place| {
        open(&place.outside(), libc::O_WRONLY)
    }),
    opened("make a file", |place| {
        open(
            &place.folder.join("new"),
            libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL,
        )
    }),
    opened("open a device", |_| {
        open(Path::new("/dev/null"), libc::O_RDWR)
    }),
    Attempt {
        outcomes: [REFUSED, Killed],
        ..landlocked("delete a file", &[UNLINK], 1, REFUSED, |place| {
            unlink(&place.outside())
        })
    },
    landlocked(
        "rename a file",
        &[libc::SYS_renameat2],
        1,
        REFUSED,
        |place| {
            let (from, to) = (c_path(&place.outside()), c_path(&place.folder.join("new")));
            call(
                libc::SYS_renameat2,
                [AT_CWD, address(&from), AT_CWD, address(&to)],
            )
        },
    )
    .in_module(REFUSED),
    landlocked(
        "give a file a second name",
        &[libc::SYS_linkat],
        1,
        REFUSED,
        |place| {
            let (from, to) = (c_path(&place.outside()), c_path(&place.folder.join("new")));
            call(
                libc::SYS_linkat,
                [AT_CWD, address(&from), AT_CWD, address(&to)],
            )
        },
    ),
    landlocked(
        "make a symbolic link",
        &[libc::SYS_symlinkat],
        1,
        REFUSED,
        |place| {
            let path = c_path(&place.folder.join("new"));
            call(
                libc::SYS_symlinkat,
                [address(&path), AT_CWD, address(&path), 0],
            )
        },
    ),
    landlocked("make a folder", &[libc::SYS_mkdirat], 1, REFUSED, |place| {
        let path = c_path(&place.folder.join("new"));
        call(libc::SYS_mkdirat, [AT_CWD, address(&path), 0o700, 0])
    })
    .in_module(REFUSED),
    landlocked(
        "make a named pipe",
        &[libc::SYS_mknodat],
        1,
        REFUSED,
        |place| {
            let path = c_path(&place.folder.join("new"));
            let mode = (libc::S_IFIFO | 0o600) as u64;
            call(libc::SYS_mknodat, [AT_CWD, address(&path), mode, 0])
        },
    ),
    landlocked("cut a file", &[libc::SYS_truncate], 3, REFUSED, |place| {
        let path = c_path(&place.outside());
        call(libc::SYS_truncate, [address(&path), 0, 0, 0])
    }),
    filtered_alone(
        "change the mode of a file",
        &[libc::SYS_fchmodat],
        |place| {
            let path = c_path(&place.outside());
            call(libc::SYS_fchmodat, [AT_CWD, address(&path), 0o777, 0])
        },
    ),
    filtered_alone(
        "change the mode of what is open",
        &[libc::SYS_fchmod],
        |_| call(libc::SYS_fchmod, [STDOUT, 0o666, 0, 0]),
    ),
    filtered("give a file away", &[libc::SYS_fchownat], |place| {
        let path = c_path(&place.outside());
        call(libc::SYS_fchownat, [AT_CWD, address(&path), 1, 1])
    }),
    Attempt {
        outcomes: [FORBIDDEN, FORBIDDEN],
        ..filtered_alone("give away what is open", &[libc::SYS_fchown], |_| {
            let nobody = u64::MAX;
            call(libc::SYS_fchown, [STDOUT, nobody, nobody, 0])
        })
    },
    filtered(
        "open a file by its handle",
        &[libc::SYS_open_by_handle_at],
        |_| call(libc::SYS_open_by_handle_at, [AT_CWD, 0, 0, 0]),
    ),
    filtered("mount", &[libc::SYS_mount], |_| {
        call(libc::SYS_mount, [0, 0, 0, 0])
    }),
    filtered("change the root folder", &[libc::SYS_chroot], |_| {
        call(libc::SYS_chroot, [0, 0, 0, 0])
    }),
    // Programs and other processes.
    Attempt {
        without: Some((Step::Landlock, Error(libc::ENOEXEC))),
        ..landlocked(
            "start a program",
            &[libc::SYS_execve],
            1,
            REFUSED,
            |place| {
                let path = c_path(&place.program());
                call(libc::SYS_execve, [address(&path), 0, 0, 0])
            },
        )
    },
    Attempt {
        unfiltered: Error(libc::ENOEXEC),
        ..filtered(
            "start a program from memory",
            &[libc::SYS_memfd_create, libc::SYS_execveat],
            |_| {
                let file = result(libc::SYS_memfd_create, [c"x".as_ptr() as u64, 0, 0, 0])?;
                let text = b"no program";
                call(
                    libc::SYS_write,
                    [file, text.as_ptr() as u64, text.len() as u64, 0],
                )?;
                let name = c"".as_ptr() as u64;
                call_5(
                    libc::SYS_execveat,
                    [file, name, 0, 0, libc::AT_EMPTY_PATH as u64],
                )
            },
        )
    },
    // Until no more threads are needed.
    Attempt {
        without: Some((Step::NoMoreThreads, Done)),
        of_module: Some(Done),
        unfiltered: Done,
        ..filtered("start a thread", &[], |_| {
            let thread = std::thread::Builder::new().spawn(|| {});
            let thread = thread.map_err(|error| error.raw_os_error().unwrap_or_default())?;
            thread.join().map_err(|_| 0)
        })
    },
    filtered_alone("start a process", &[libc::SYS_clone], |_| {
        let child = result(libc::SYS_clone, [libc::SIGCHLD as u64, 0, 0, 0])?;
        if child == 0 {
            // SAFETY: it ends the child at once.
            unsafe { libc::_exit(0) };
        }
        Ok(())
    }),
    Attempt {
        outcomes: [Error(libc::ENOSYS), Error(libc::ENOSYS)],
        unfiltered: Error(libc::EINVAL),
        ..filtered("start a process with `clone3`", &[libc::SYS_clone3], |_| {
            call(libc::SYS_clone3, [0, 0, 0, 0])
        })
    },
    filtered("make a user namespace", &[libc::SYS_unshare], |_| {
        call(libc::SYS_unshare, [libc::CLONE_NEWUSER as u64, 0, 0, 0])
    }),
    filtered(
        "make a process in a user namespace",
        &[libc::SYS_clone],
        |_| {
            let flags = (libc::CLONE_NEWUSER | libc::SIGCHLD) as u64;
            if result(libc::SYS_clone, [flags, 0, 0, 0])? == 0 {
                // SAFETY: it ends the child at once.
                unsafe { libc::_exit(0) };
            }
            Ok(())
        },
    ),
    filtered("enter a namespace", &[libc::SYS_setns], |_| {
        call(libc::SYS_setns, [STDOUT, 0, 0, 0])
    }),
    landlocked(
        "trace another process",
        &[libc::SYS_ptrace],
        1,
        FORBIDDEN,
        |place| {
            let victim = place.victim as u64;
            call(libc::SYS_ptrace, [libc::PTRACE_SEIZE as u64, victim, 0, 0])
        },
    ),
    landlocked(
        "read another process's memory",
        &[libc::SYS_process_vm_readv],
        1,
        FORBIDDEN,
        |place| {
            // The victim is a copy of this process, so there is something at the same address.
            let mut byte = 0_u8;
            let part = libc::iovec {
                iov_base: ptr::from_mut(&mut byte).cast::<c_void>(),
                iov_len: 1,
            };
            let part = ptr::from_ref(&part) as u64;
            call_6(
                libc::SYS_process_vm_readv,
                [place.victim as u64, part, 1, part, 1, 0],
            )
        },
    ),
    landlocked(
        "signal another process",
        &[libc::SYS_kill],
        6,
        FORBIDDEN,
        |place| call(libc::SYS_kill, [place.victim as u64, 0, 0, 0]),
    ),
    landlocked(
        "signal a thread of another process",
        &[libc::SYS_tgkill],
        6,
        FORBIDDEN,
        |place| {
            let victim = place.victim as u64;
            call(libc::SYS_tgkill, [victim, victim, 0, 0])
        },
    ),
    // Sockets.
    filtered_alone("make a socket of the internet", &[libc::SYS_socket], |_| {
        socket(libc::AF_INET, libc::SOCK_DGRAM).map(drop)
    })
    .in_module(REFUSED),
    filtered_alone("make a local socket", &[libc::SYS_socket], |_| {
        socket(libc::AF_UNIX, libc::SOCK_STREAM).map(drop)
    })
    .in_module(REFUSED)
    .with_pcsc(Done),
    filtered_alone(
        "make a socket to the kernel (netlink)",
        &[libc::SYS_socket],
        |_| socket(libc::AF_NETLINK, libc::SOCK_RAW).map(drop),
    )
    .in_module(REFUSED),
    Attempt {
        of_software_tpm: Some(REFUSED),
        ..landlocked(
            "connect to a server over TCP",
            &[libc::SYS_socket, libc::SYS_connect],
            4,
            REFUSED,
            |place| tcp(libc::SYS_connect, place.tcp_port),
        )
        .in_module(REFUSED)
    },
    landlocked(
        "listen for connections over TCP",
        &[libc::SYS_socket, libc::SYS_bind],
        4,
        REFUSED,
        |_| tcp(libc::SYS_bind, 0),
    )
    .in_module(REFUSED),
    // Landlock has nothing against it before Linux 7.1.
    filtered_alone(
        "connect to pcscd's socket, or D-Bus",
        &[libc::SYS_socket, libc::SYS_connect],
        |place| local(libc::SYS_connect, place.socket().as_os_str().as_bytes()),
    )
    .in_module(REFUSED)
    .with_pcsc(Done),
    landlocked(
        "connect to an abstract socket",
        &[libc::SYS_socket, libc::SYS_connect],
        6,
        FORBIDDEN,
        |place| {
            local(
                libc::SYS_connect,
                &[b"\0", &place.abstract_name[..]].concat(),
            )
        },
    )
    .in_module(REFUSED)
    .with_pcsc(Done),
    landlocked(
        "make a socket with a name",
        &[libc::SYS_socket, libc::SYS_bind],
        1,
        REFUSED,
        |place| {
            let path = place.folder.join("new");
            local(libc::SYS_bind, path.as_os_str().as_bytes())
        },
    )
    .in_module(REFUSED)
    .with_pcsc(Killed),
    filtered_alone(
        "make a pair of datagram sockets, which send to any address",
        &[libc::SYS_socketpair],
        |_| pair(libc::AF_UNIX, libc::SOCK_DGRAM).map(drop),
    ),
    filtered(
        "make a pair of sockets of another family",
        &[libc::SYS_socketpair],
        |_| pair(libc::AF_TIPC, libc::SOCK_SEQPACKET).map(drop),
    ),
    filtered("send to an address", &[libc::SYS_sendto], |place| {
        let [_, end] = pair(libc::AF_UNIX, libc::SOCK_SEQPACKET)?;
        let name = unix_address(place.socket().as_os_str().as_bytes());
        call_6(
            libc::SYS_sendto,
            [
                end,
                name.as_ptr() as u64,
                1,
                0,
                name.as_ptr() as u64,
                name.len() as u64,
            ],
        )
    }),
    filtered_alone("ask for a sender's address", &[libc::SYS_recvfrom], |_| {
        let [one, other] = pair(libc::AF_UNIX, libc::SOCK_SEQPACKET)?;
        let mut buffer = [0_u8; 128];
        let mut length = 64_u32;
        let address = buffer.as_mut_ptr() as u64;
        call(libc::SYS_write, [one, address, 1, 0])?;
        let length = ptr::from_mut(&mut length) as u64;
        call_6(
            libc::SYS_recvfrom,
            [other, address, 1, 0, address + 64, length],
        )
    }),
    filtered_alone(
        "ask who is at the other end of a socket",
        &[libc::SYS_getsockopt],
        |_| {
            let [end, _] = pair(libc::AF_UNIX, libc::SOCK_SEQPACKET)?;
            let mut buffer = [0_u8; 64];
            let mut length = 64_u32;
            call_5(
                libc::SYS_getsockopt,
                [
                    end,
                    libc::SOL_SOCKET as u64,
                    libc::SO_PEERCRED as u64,
                    buffer.as_mut_ptr() as u64,
                    ptr::from_mut(&mut length) as u64,
                ],
            )
        },
    ),
    // The process itself.
    filtered_alone("map executable memory", &[libc::SYS_mmap], |_| {
        map(
            libc::PROT_READ | libc::PROT_EXEC,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            4096,
        )
        .map(drop)
    }),
    filtered_alone("make memory executable", &[libc::SYS_mprotect], |_| {
        let memory = map(
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            4096,
        )?;
        let rights = (libc::PROT_READ | libc::PROT_EXEC) as u64;
        call(libc::SYS_mprotect, [memory, 4096, rights, 0])
    }),
    filtered_alone(
        "have all memory that can be read be executable",
        &[libc::SYS_personality],
        |_| {
            call(
                libc::SYS_personality,
                [libc::READ_IMPLIES_EXEC as u64, 0, 0, 0],
            )
        },
    ),
    filtered_alone(
        "give other advice about memory",
        &[libc::SYS_madvise],
        |_| {
            let rights = libc::PROT_READ | libc::PROT_WRITE;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let memory = map(rights, flags, 4096)?;
            call(
                libc::SYS_madvise,
                [memory, 4096, libc::MADV_DONTFORK as u64, 0],
            )
        },
    ),
    filtered_alone("become dumpable again", &[libc::SYS_prctl], |_| {
        call(libc::SYS_prctl, [libc::PR_SET_DUMPABLE as u64, 1, 0, 0])
    }),
    filtered_alone("outlive the main process", &[libc::SYS_prctl], |_| {
        call(libc::SYS_prctl, [libc::PR_SET_PDEATHSIG as u64, 0, 0, 0])
    }),
    filtered("change what `/proc` says of it", &[libc::SYS_prctl], |_| {
        call(libc::SYS_prctl, [libc::PR_SET_MM as u64, 0, 0, 0])
    }),
    Attempt {
        unfiltered: FORBIDDEN,
        without: Some((Step::NotDumpable, Done)),
        ..filtered(
            "be traced and dumped",
            &[libc::SYS_prctl],
            |_| match result(libc::SYS_prctl, [libc::PR_GET_DUMPABLE as u64, 0, 0, 0])? {
                1 => Ok(()),
                _ => Err(libc::EPERM),
            },
        )
    },
    Attempt {
        unfiltered: FORBIDDEN,
        without: Some((Step::Limits, Done)),
        ..filtered("leave a core file", &[libc::SYS_prlimit64], |_| {
            let mut limit = [0_u64; 2];
            let limit_address = limit.as_mut_ptr() as u64;
            let core = u64::from(libc::RLIMIT_CORE);
            call(libc::SYS_prlimit64, [0, core, 0, limit_address])?;
            if limit[1] > 0 {
                Ok(())
            } else {
                Err(libc::EPERM)
            }
        })
    },
    filtered("set filters of its own", &[libc::SYS_seccomp], |_| {
        call(libc::SYS_seccomp, [1, 0, 0, 0])
    }),
    filtered(
        "type on the user's terminal (`TIOCSTI`)",
        &[libc::SYS_ioctl],
        |_| call(libc::SYS_ioctl, [0, libc::TIOCSTI, 0, 0]),
    )
    .in_module(FORBIDDEN),
    filtered_alone(
        "have signals sent by what is open",
        &[libc::SYS_fcntl],
        |_| call(libc::SYS_fcntl, [STDOUT, libc::F_SETOWN as u64, 0, 0]),
    ),
    filtered("have what is open send signals", &[libc::SYS_fcntl], |_| {
        call(
            libc::SYS_fcntl,
            [STDOUT, libc::F_SETFL as u64, libc::O_ASYNC as u64, 0],
        )
    }),
    // The kernel.
    filtered("load a BPF program", &[libc::SYS_bpf], |_| {
        call(libc::SYS_bpf, [u64::MAX, 0, 0, 0])
    }),
    filtered("set up `io_uring`", &[libc::SYS_io_uring_setup], |_| {
        call(libc::SYS_io_uring_setup, [1, 0, 0, 0])
    }),
    filtered("handle page faults", &[libc::SYS_userfaultfd], |_| {
        call(libc::SYS_userfaultfd, [u64::MAX, 0, 0, 0])
    }),
    filtered(
        "count what the processor does",
        &[libc::SYS_perf_event_open],
        |_| call(libc::SYS_perf_event_open, [0, 0, 0, 0]),
    ),
    filtered("use the kernel's keys", &[libc::SYS_keyctl], |_| {
        call(libc::SYS_keyctl, [u64::MAX, 0, 0, 0])
    }),
    filtered("load a module", &[libc::SYS_finit_module], |_| {
        call(libc::SYS_finit_module, [u64::MAX, 0, 0, 0])
    }),
    filtered("restart the machine", &[libc::SYS_reboot], |_| {
        call(libc::SYS_reboot, [0, 0, 0, 0])
    }),
    // The machine.
    limited("take 2 GiB of memory", libc::ENOMEM, |_| {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        map(libc::PROT_NONE, flags, 2 << 30).map(drop)
    }),
    limited("open more than 2048 descriptors", libc::EMFILE, |_| {
        for _ in 0..1030 {
            pair(libc::AF_UNIX, libc::SOCK_SEQPACKET)?;
        }
        Ok(())
    }),
];

/// What only a broker that has a store can try.
pub const ATTEMPTS_OF_STORE: &[Attempt] = &[
    limited("fill the disk", libc::EFBIG, |place| {
        let path = c_path(&place.store().join("large"));
        let flags = (libc::O_WRONLY | libc::O_CREAT) as u64;
        let file = result(libc::SYS_openat, [AT_CWD, address(&path), flags, 0o600])?;
        call(libc::SYS_pwrite64, [file, address(&path), 1, 64 << 20])
    }),
    Attempt {
        outcomes: [Done, Done],
        unfiltered: Done,
        ..filtered("use its store", &[], |place| {
            let path = c_path(&place.store().join("file"));
            let flags = (libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC) as u64;
            let file = result(libc::SYS_openat, [AT_CWD, address(&path), flags, 0o600])?;
            call(libc::SYS_write, [file, address(&path), 1, 0])?;
            call(libc::SYS_fsync, [file, 0, 0, 0])?;
            call(libc::SYS_ftruncate, [file, 0, 0, 0])?;
            open(&place.store(), libc::O_RDONLY)?;
            unlink(&place.store().join("file"))
        })
    },
    Attempt {
        without: Some((Step::Landlock, Error(libc::ENOEXEC))),
        ..landlocked(
            "start a program from its store",
            &[libc::SYS_execve],
            1,
            REFUSED,
            |place| {
                let path = c_path(&place.store().join("program"));
                call(libc::SYS_execve, [address(&path), 0, 0, 0])
            },
        )
    },
    Attempt {
        outcomes: [REFUSED, REFUSED],
        unfiltered: REFUSED,
        without: Some((Step::Landlock, Done)),
        ..filtered("follow a link out of its store", &[], |place| {
            open(&place.store().join("link"), libc::O_RDONLY)
        })
    },
    Attempt {
        outcomes: [REFUSED, REFUSED],
        unfiltered: REFUSED,
        without: Some((Step::Landlock, Done)),
        ..filtered("go up from its store", &[], |place| {
            open(&place.store().join("../outside"), libc::O_RDONLY)
        })
    },
];

/// What only processes without a store can try.
pub const ATTEMPTS_OF_OTHERS: &[Attempt] = &[opened("read the store", |place| {
    open(&place.store().join("program"), libc::O_RDONLY)
})];

pub const AT_CWD: u64 = libc::AT_FDCWD as u64;
pub const STDOUT: u64 = 1;

pub fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("a path")
}

pub fn address(text: &CString) -> u64 {
    text.as_ptr() as u64
}

/// Makes a system call as it is, without what the C library does before and after.
fn result_6(number: c_long, arguments: [u64; 6]) -> Result<u64, i32> {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: no attempt gives addresses but those of its own variables, with their lengths.
    let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    u64::try_from(result).map_err(|_| {
        std::io::Error::last_os_error()
            .raw_os_error()
            .unwrap_or_default()
    })
}

pub fn result(number: c_long, [a, b, c, d]: [u64; 4]) -> Result<u64, i32> {
    result_6(number, [a, b, c, d, 0, 0])
}

pub fn call(number: c_long, arguments: [u64; 4]) -> Result<(), i32> {
    result(number, arguments).map(drop)
}

pub fn call_5(number: c_long, [a, b, c, d, e]: [u64; 5]) -> Result<(), i32> {
    result_6(number, [a, b, c, d, e, 0]).map(drop)
}

pub fn call_6(number: c_long, arguments: [u64; 6]) -> Result<(), i32> {
    result_6(number, arguments).map(drop)
}

fn open(path: &Path, flags: i32) -> Result<(), i32> {
    let path = c_path(path);
    call(
        libc::SYS_openat,
        [AT_CWD, address(&path), flags as u64, 0o600],
    )
}

/// As C libraries delete files on this architecture.
#[cfg(target_arch = "x86_64")]
const UNLINK: c_long = libc::SYS_unlink;
#[cfg(not(target_arch = "x86_64"))]
const UNLINK: c_long = libc::SYS_unlinkat;

fn unlink(path: &Path) -> Result<(), i32> {
    let path = c_path(path);
    let path = address(&path);
    if cfg!(target_arch = "x86_64") {
        call(UNLINK, [path, 0, 0, 0])
    } else {
        call(UNLINK, [AT_CWD, path, 0, 0])
    }
}

pub fn socket(family: i32, kind: i32) -> Result<u64, i32> {
    let kind = (kind | libc::SOCK_CLOEXEC) as u64;
    result(libc::SYS_socket, [family as u64, kind, 0, 0])
}

pub fn pair(family: i32, kind: i32) -> Result<[u64; 2], i32> {
    let mut ends = [0_i32; 2];
    let kind = (kind | libc::SOCK_CLOEXEC) as u64;
    call(
        libc::SYS_socketpair,
        [family as u64, kind, 0, ends.as_mut_ptr() as u64],
    )?;
    Ok(ends.map(|end| end as u64))
}

fn tcp(number: c_long, port: u16) -> Result<(), i32> {
    let socket = socket(libc::AF_INET, libc::SOCK_STREAM)?;
    let mut name = Vec::from((libc::AF_INET as u16).to_ne_bytes());
    name.extend(port.to_be_bytes());
    name.extend([127, 0, 0, 1]);
    name.extend([0; 8]);
    call(number, [socket, name.as_ptr() as u64, name.len() as u64, 0])
}

fn unix_address(path: &[u8]) -> Vec<u8> {
    [&(libc::AF_UNIX as u16).to_ne_bytes()[..], path].concat()
}

fn local(number: c_long, path: &[u8]) -> Result<(), i32> {
    let socket = socket(libc::AF_UNIX, libc::SOCK_STREAM)?;
    let name = unix_address(path);
    call(number, [socket, name.as_ptr() as u64, name.len() as u64, 0])
}

pub fn map(rights: i32, flags: i32, length: u64) -> Result<u64, i32> {
    result_6(
        libc::SYS_mmap,
        [0, length, rights as u64, flags as u64, u64::MAX, 0],
    )
}
