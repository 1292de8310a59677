package quiesce

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"

	"stillpoint.io/stillpoint/internal/podexec"
)

func printed(text string) *podexec.Output {
	o := podexec.NewOutput(Unmasked)
	_, _ = o.Write([]byte(text))
	return o
}

const (
	busy  = "fsfreeze: /data: freeze failed: Device or resource busy\n"
	wrong = "fsfreeze: /data: unfreeze failed: Invalid argument\n"
)

func TestStateAfterAPreCommand(t *testing.T) {
	plain := []string{"fsfreeze", "--freeze", "/data"}
	shell := func(script string) []string { return []string{"sh", "-c", script} }
	for name, test := range map[string]struct {
		command []string
		code    string
		output  string
		want    state
	}{
		"success":                          {plain, "0", "", frozen},
		"refused":                          {plain, "1", busy, foreign},
		"refused by busybox":               {[]string{"busybox", "fsfreeze", "--freeze", "/data"}, "1", "fsfreeze: ioctl 0xc0045877 failed: Device or resource busy\n", foreign},
		"refused, of XFS":                  {[]string{"/usr/sbin/xfs_freeze", "-f", "/data"}, "1", "xfs_freeze: cannot freeze filesystem at /data: Device or resource busy\n", foreign},
		"refused in a shell":               {shell("fsfreeze -f /data || exit 1"), "1", busy, foreign},
		"refused, and hidden":              {shell("fsfreeze -f /data || true"), "0", busy, foreign},
		"one of two is refused":            {shell("fsfreeze -f /a && fsfreeze -f /data"), "1", busy, uncertain},
		"another error":                    {plain, "1", "fsfreeze: /data: freeze failed: Operation not supported\n", uncertain},
		"killed":                           {plain, "124", "", uncertain},
		"another program that is busy":     {[]string{"umount", "/data"}, "32", "umount: /data: Device or resource busy\n", uncertain},
		"another program that says freeze": {[]string{"app", "stop"}, "0", "app: freeze: Device or resource busy\n", frozen},
	} {
		t.Run(name, func(t *testing.T) { assert.Equal(t, test.want, ended(test.command, test.code, printed(test.output))) })
	}
}

func TestReplyOfAPostCommand(t *testing.T) {
	plain := []string{"fsfreeze", "--unfreeze", "/data"}
	shell := func(script string) []string { return []string{"sh", "-c", script} }
	for name, test := range map[string]struct {
		command []string
		code    string
		output  string
		want    Reply
	}{
		"success":                     {plain, "0", "", Undone},
		"not frozen":                  {plain, "1", wrong, notFrozen},
		"failed":                      {plain, "1", "fsfreeze: /data: unfreeze failed: Operation not permitted\n", failed},
		"one not frozen, one failed":  {shell("fsfreeze -u /data; fsfreeze -u /b"), "1", wrong + "fsfreeze: /b: unfreeze failed: Operation not permitted\n", failed},
		"a shell of one thaw":         {shell("fsfreeze -u /data"), "0", "", Undone},
		"a shell that does more":      {shell("rm lock; fsfreeze -u /data"), "0", "", ran},
		"a shell that hides an error": {shell("fsfreeze -u /data || true"), "0", wrong, notFrozen},
		"no file system":              {[]string{"unlock"}, "0", "unlock: Invalid argument\n", Undone},
		"no file system, failed":      {[]string{"unlock"}, "1", "unlock: Invalid argument\n", failed},
	} {
		t.Run(name, func(t *testing.T) { assert.Equal(t, test.want, replyOf(test.command, test.code, printed(test.output))) })
	}
}

func TestStateAfterAThaw(t *testing.T) {
	for name, test := range map[string]struct {
		before state
		reply  Reply
		sure   bool
		want   state
		broken bool
	}{
		"held, and found frozen":                {before: frozen, reply: Undone, want: thawed},
		"held, and thawed by another program":   {before: frozen, reply: notFrozen, want: thawed, broken: true},
		"held, and no answer":                   {before: frozen, reply: failed, want: frozen},
		"EINVAL while it can complete":          {before: pending, reply: notFrozen, want: pending},
		"EINVAL while nothing is known":         {before: pending, reply: failed, sure: true, want: pending},
		"EINVAL, and no command is at work":     {before: pending, reply: notFrozen, sure: true, want: thawed},
		"it has completed in time for the thaw": {before: pending, reply: Undone, want: thawed},
		"a command of which it is not known":    {before: pending, reply: ran, want: pending},
		"the pre command has failed":            {before: uncertain, reply: notFrozen, want: thawed},
		"another program's":                     {before: foreign, reply: Undone, want: foreign},
		"nothing has begun":                     {before: notBegun, reply: Undone, want: notBegun},
	} {
		t.Run(name, func(t *testing.T) {
			next, broken := test.before.after(test.reply, test.sure)
			assert.Equal(t, test.want, next)
			assert.Equal(t, test.broken, broken)
		})
	}
	for _, s := range []state{notBegun, foreign, thawed} {
		assert.False(t, s.due())
	}
	for _, s := range []state{pending, frozen, uncertain} {
		assert.True(t, s.due())
	}
}

func TestStateOfSeveralCommands(t *testing.T) {
	for name, test := range map[string]struct {
		commands []state
		want     state
	}{
		"none":                   {nil, notBegun},
		"one has not begun":      {[]state{notBegun, frozen}, frozen},
		"one can still complete": {[]state{frozen, pending, foreign}, pending},
		"one was refused":        {[]state{frozen, foreign}, uncertain},
		"all were refused":       {[]state{foreign, foreign}, foreign},
	} {
		t.Run(name, func(t *testing.T) { assert.Equal(t, test.want, combine(test.commands)) })
	}
}

func TestFileSystemOfACommand(t *testing.T) {
	for command, want := range map[string]string{
		"fsfreeze|--freeze|/data":                     "/data",
		"/sbin/fsfreeze|-u|/data":                     "/data",
		"xfs_freeze|-u|/data":                         "/data",
		"busybox|fsfreeze|--unfreeze|/data":           "/data",
		"sh|-c|fsfreeze --freeze /data":               "/data",
		"bash|-o|errexit|-c|exec fsfreeze -f /data\n": "/data",
		"sh|-c|fsfreeze -f /data && touch /x":         "",
		"sh|-c|fsfreeze -f $DATA":                     "",
		"sh|-c|fsfreeze -f /data\nfsfreeze -f /b":     "",
		"sh|-c|fsfreeze -f /data|x":                   "",
		"fsfreeze|--freeze":                           "",
		"fsfreeze|--help|/data":                       "",
		"psql|-f|/data":                               "",
		"":                                            "",
	} {
		t.Run(command, func(t *testing.T) {
			got, ok := OnlyFileSystem(strings.Split(command, "|"))
			assert.Equal(t, want, got)
			assert.Equal(t, want != "", ok)
		})
	}
}
