#!/bin/sh
# Give libpq the password of the database, then become the command.
#
# libpq takes a password from a file (PGPASSFILE), so that it stands in no URL, no environment and no list of processes;
# but only from a file in its own format that nobody else may read, which a mounted secret is not.
set -eu

secret=${POSTGRES_PASSWORD_FILE:-}
if [ -n "$secret" ]; then
    if [ ! -r "$secret" ]; then
        echo "adamom: cannot read the secret $secret as user $(id -u). Try: chmod 644 on its file, in a folder of mode 700" >&2
        exit 2
    fi
    PGPASSFILE=$(mktemp)  # for its owner alone
    export PGPASSFILE
    printf '*:*:*:*:%s\n' "$(sed 's/[\\:]/\\&/g' "$secret")" >"$PGPASSFILE"
fi
exec "$@"
