package faults

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	"k8s.io/apimachinery/pkg/types"

	"stillpoint.io/stillpoint/tests/fake"
)

// mongosh stands in for MongoDB's shell, and for a server that it is connected to.
// What it does, by sentences of the manual (db.fsyncLock, db.fsyncUnlock, mongosh):
//
//	fsyncLock counts locks, and returns the count     the file locks has a line for each
//	fsyncUnlock takes one lock away                   the last line goes
//	without a lock it is an error                     "fsyncUnlock called when not locked"
//	a new connection may not be possible while locked a shell that authenticates hangs
//	statements come on standard input, line by line   and nothing else is evaluated
//	the lock outlives the connection                  the end of the shell changes nothing
//
// The journal has a line for each start, lock and unlock, with the shell's process.
const mongosh = `#!/bin/sh
dir=DIR
say() { echo "$1 $$" >> "$dir/journal"; }
count() { wc -l < "$dir/locks"; }
say start
held=
while IFS= read -r line; do
	case $line in
	*'db.auth'*) [ "$(count)" -eq 0 ] || [ -e "$dir/new-connections" ] || exec sleep 60 ;;
	*'var answer = db.fsyncLock()'*)
		echo $$ >> "$dir/locks"
		say lock
		if [ "$(count)" -gt 1 ]; then
			sed -i '$d' "$dir/locks"
			say unlock
			echo 'fsyncLock: the server is locked already'
			exit 0
		fi
		held=yes
		;;
	'try { if (held)'*) [ -z "$held" ] || { sed -i '$d' "$dir/locks"; say unlock; held=; } ;;
	*'db.fsyncUnlock()'*)
		if [ "$(count)" -gt 0 ]; then
			sed -i '$d' "$dir/locks"
			say unlock
			held=
		else
			case $line in *held*) echo 'fsyncUnlock: not locked'; exit 0 ;; esac
		fi
		;;
	'print('*) line=${line#*stillpoint: }; printf 'admin> \nstillpoint: %s\n' "${line%%\"*}" ;;
	'quit(held'*) [ -z "$held" ]; exit ;;
	'quit('*) exit 0 ;;
	esac
done
exit 0
`

// locking is a bed with a database, its journal, and a storage that calls during while
// it cuts.
func locking(t *testing.T, during func(bed *fake.Bed, dir string)) (bed *fake.Bed, app *fake.Workload, dir string, journal func() []string) {
	t.Helper()
	bed, dir = fake.New(t), t.TempDir()
	app = bed.Deploy(fake.App{Kind: "StatefulSet", Annotations: map[string]string{"stillpoint.io/quiesce": "mongodb"}})
	require.NoError(t, os.WriteFile(filepath.Join(dir, "locks"), nil, 0o600))
	bed.Node.Container("shop", "db-0", "main").Program("mongosh", strings.ReplaceAll(mongosh, "DIR", dir))
	begun := false
	bed.Storage.Behave(func(types.NamespacedName) fake.Behaviour {
		if !begun && during != nil {
			begun = true
			go during(bed, dir)
		}
		return fake.Behaviour{Cut: 500 * time.Millisecond}
	})
	return bed, app, dir, func() []string {
		content, err := os.ReadFile(filepath.Join(dir, "journal"))
		require.NoError(t, err)
		return strings.Split(strings.TrimSpace(string(content)), "\n")
	}
}

func locks(t *testing.T, dir string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(dir, "locks"))
	require.NoError(t, err)
	return strings.TrimSpace(string(content))
}

// 11: the session that locks is the one that unlocks, and no other is needed.
func TestMongoDBIsUnlockedByTheSessionThatLocks(t *testing.T) {
	t.Parallel()
	for path, change := range map[string]func(*velerov1.Backup){"group": fake.WithPolicy, "around Velero's": func(*velerov1.Backup) {}} {
		t.Run(path, func(t *testing.T) {
			t.Parallel()
			var during string
			bed, app, dir, journal := locking(t, func(_ *fake.Bed, dir string) {
				content, _ := os.ReadFile(filepath.Join(dir, "locks"))
				during = string(content)
			})
			v := bed.Velero()
			r := v.Backup(bed.Backup(change), app)
			require.Empty(t, r.Dropped)
			require.Empty(t, v.Errors())
			assert.Len(t, bed.Storage.Snapshots(), 1)
			assert.NotEmpty(t, during, "locked while the volume is cut")
			assert.Empty(t, locks(t, dir))
			said := journal()
			require.Len(t, said, 3, said)
			shell := strings.TrimPrefix(said[0], "start ")
			assert.Equal(t, []string{"start " + shell, "lock " + shell, "unlock " + shell}, said)
		})
	}
}

// A session that dies leaves the lock behind: another one unlocks, as soon as the
// server takes it, and the snapshot is an error.
func TestMongoDBIsUnlockedWhenTheSessionDies(t *testing.T) {
	t.Parallel()
	bed, app, dir, journal := locking(t, func(_ *fake.Bed, dir string) {
		pid, _ := os.ReadFile(filepath.Join(dir, "locks"))
		_ = os.WriteFile(filepath.Join(dir, "new-connections"), nil, 0o600)
		kill(t, strings.TrimSpace(string(pid)))
	})
	v := bed.Velero()
	v.Backup(bed.Backup(fake.WithPolicy), app)
	assert.NotEmpty(t, v.Errors())
	assert.Empty(t, bed.Storage.Snapshots())
	assert.Eventually(t, func() bool { return locks(t, dir) == "" }, 10*time.Second, 20*time.Millisecond, journal())
}

// A lock that somebody else holds is neither taken for ours nor undone.
func TestMongoDBThatIsLockedAlready(t *testing.T) {
	t.Parallel()
	bed, app, dir, _ := locking(t, nil)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "locks"), []byte("theirs\n"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "new-connections"), nil, 0o600))
	v := bed.Velero()
	v.Backup(bed.Backup(fake.WithPolicy), app)
	require.NotEmpty(t, v.Errors())
	assert.Contains(t, v.Errors()[0], "the server is locked already")
	assert.Equal(t, "theirs", locks(t, dir))
	assert.Empty(t, bed.Storage.Snapshots())
}

// kill ends a process by its number.
func kill(t *testing.T, pid string) {
	t.Helper()
	number, err := strconv.Atoi(pid)
	if assert.NoError(t, err) {
		assert.NoError(t, syscall.Kill(number, syscall.SIGKILL))
	}
}
