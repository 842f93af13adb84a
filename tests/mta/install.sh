#!/bin/sh
# Install what tests/mta needs, as root on Debian or Ubuntu: Postfix, miltertest, OpenDKIM, Sendmail,
# HAProxy, PostgreSQL, Redis, ClamAV's daemon (without its database: the tests bring one of their own),
# pymilter, and programs written for it from PyPI and Debian; a Chromium without a window, for the test
# that opens the manual; logrotate and systemd's tools, of which nothing is started.
#
# Debian lets only one MTA be installed at a time, so Sendmail's packages are unpacked into a
# folder of their own, from which the tests start it. It may be run again: what is there stays.
set -eu

sendmail="${YATXMILTER_SENDMAIL:-/var/cache/yatxmilter/sendmail}"
export DEBIAN_FRONTEND=noninteractive

if ! { command -v postfix && command -v miltertest && command -v unshare &&
    command -v opendkim-genkey && command -v haproxy && command -v redis-server &&
    command -v chromium-headless-shell && command -v systemd-analyze && command -v logrotate && command -v clamd && /usr/bin/python3 -c 'import Milter' &&
    ls /usr/lib/postgresql/*/bin/postgres; } >/dev/null 2>&1; then
    apt-get update -qq
    # No configuration asked for and no daemon started: each test brings its own of both.
    echo 'postfix postfix/main_mailer_type select No configuration' | debconf-set-selections
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        trap 'rm -f "$policy"' EXIT
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
    fi
    apt-get install -qq -y --no-install-recommends postfix miltertest util-linux \
        opendkim opendkim-tools haproxy postgresql redis-server clamav-daemon \
        chromium-headless-shell python3-milter systemd adduser logrotate >/dev/null
fi

if [ ! -x "$sendmail/usr/libexec/sendmail/sendmail" ]; then
    fresh="$sendmail.$$"
    mkdir -p "$fresh/debs"
    (
        cd "$fresh/debs"
        packages='sendmail-bin sendmail-cf m4 libsigsegv2 libwrap0 liblockfile1 libnsl2'
        # shellcheck disable=SC2086
        apt-get download -qq $packages 2>/dev/null || {
            apt-get update -qq
            apt-get download -qq $packages
        }
        for deb in *.deb; do dpkg -x "$deb" "$fresh"; done
    )
    rm -r "$fresh/debs"
    # The loader ignores LD_LIBRARY_PATH for a set-gid program.
    chmod 755 "$fresh/usr/libexec/sendmail/sendmail"
    rm -rf "$sendmail"
    mv "$fresh" "$sendmail"
fi

# Programs written for pymilter, and pymilter's source, in a folder of their own.
programs="${YATXMILTER_PYMILTER_PROGRAMS:-/var/cache/yatxmilter/pymilter}"
if [ ! -d "$programs/pymilter" ]; then
    fresh="$programs.$$"
    mkdir -p "$fresh/debs" "$fresh/source"
    python="${YATXMILTER_PYTHON:-python3}"
    "$python" -m pip install -q --no-deps --target "$fresh/site" dkimpy-milter==1.2.3 \
        spf-engine==3.1.0 no-ppap-milter==0.2.5 dkimpy dnspython authres pyspf
    "$python" -m pip download -q --no-deps --no-binary :all: -d "$fresh/source" pymilter==1.0.5
    tar -xzf "$fresh"/source/pymilter-*.tar.gz -C "$fresh"
    mv "$fresh"/pymilter-* "$fresh/pymilter"
    (
        cd "$fresh/debs"
        apt-get download -qq vrfydmn python3-srs
        for deb in *.deb; do dpkg -x "$deb" "$fresh/debs"; done
    )
    rm -rf "$programs" "$fresh/source"
    mkdir -p "$(dirname "$programs")"
    mv "$fresh" "$programs"
fi

libraries=$(echo "$sendmail"/usr/lib/*-linux-gnu*)
if LD_LIBRARY_PATH="$libraries" ldd "$sendmail/usr/libexec/sendmail/sendmail" | grep 'not found'; then
    echo "tests/mta/install.sh: libraries are missing for Sendmail" >&2
    exit 1
fi
echo "tests/mta: Postfix, miltertest, OpenDKIM, HAProxy, stores, ClamAV, pymilter and programs for it, Chromium, Sendmail ($sendmail) are installed"
