package around

import (
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/assert"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"stillpoint.io/stillpoint/internal/decision"
	"stillpoint.io/stillpoint/internal/unit"
)

// ofTwo returns a freeze of the claims a and b that has begun.
func ofTwo() *freeze {
	claims := []corev1.PersistentVolumeClaim{{ObjectMeta: metav1.ObjectMeta{Name: "a"}}, {ObjectMeta: metav1.ObjectMeta{Name: "b"}}}
	f := newFreeze(&Freezes{log: logrus.New()}, &decision.Unit{Path: decision.Around, Quiesce: &unit.Unit{Claims: claims}}, &velerov1.Backup{})
	f.stages["a"], f.stages["b"] = waiting, waiting
	return f
}

// awaited returns the claim that the freeze waits for, "" if all are cut.
func (f *freeze) awaited() string {
	_, claim, _ := f.idleLimit()
	return claim
}

func TestStages(t *testing.T) {
	f := ofTwo()
	f.observe("a", "of another backup", false)
	assert.Equal(t, waiting, f.stages["a"], "no VolumeSnapshot is Velero's before its turn")
	f.move("a", entered)
	limit, claim, changed := f.idleLimit()
	assert.Equal(t, creationLimit, limit)
	assert.Equal(t, "a", claim)
	f.observe("a", "first", false)
	select {
	case <-changed:
	default:
		t.Error("a change does not notify the waiter")
	}
	limit, _, _ = f.idleLimit()
	assert.Equal(t, time.Hour, limit, "the storage works")
	f.observe("a", "first", true)
	assert.Equal(t, "b", f.awaited(), "Velero comes to the next one")
	f.observe("c", "first", true)
	assert.NotContains(t, f.stages, "c", "of no claim of the unit")
	f.move("b", entered)
	f.observe("b", "first", false)
	f.observe("b", "second", false)
	f.observe("b", "first", true)
	assert.Equal(t, "b", f.awaited(), "any of the two may be Velero's")
	assert.False(t, f.setOwn("b", "second"), "it is not cut")
	assert.Equal(t, "b", f.awaited())
	f.observe("b", "third", false)
	assert.Equal(t, map[string]bool{"second": false}, f.seen["b"], "Velero has named its own")
	f.observe("b", "second", true)
	assert.Empty(t, f.awaited(), "all are cut")
}

// If another Velero has a Backup of this name, only the VolumeSnapshot that Velero's
// action names counts.
func TestStagesOfForeignBackup(t *testing.T) {
	f := ofTwo()
	f.foreign = true
	f.move("a", entered)
	f.observe("a", "first", false)
	f.observe("a", "first", true)
	assert.Equal(t, created, f.stages["a"])
	assert.True(t, f.setOwn("a", "first"))
	assert.Equal(t, cut, f.stages["a"])
}

func TestAwait(t *testing.T) {
	f := ofTwo()
	f.move("a", entered)
	ended := make(chan struct{})
	go func() {
		f.await("a")
		close(ended)
	}()
	f.move("b", entered)
	select {
	case <-ended:
		t.Error("it is not cut")
	case <-time.After(20 * time.Millisecond):
	}
	f.move("a", cut)
	<-ended // b keeps the freeze
	f.move("b", cut)
	ended = make(chan struct{})
	go func() {
		f.await("b")
		close(ended)
	}()
	close(f.over)
	<-ended // the freeze has ended
}
